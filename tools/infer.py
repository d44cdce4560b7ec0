#!/usr/bin/env python
"""Predicts all tasks on an image, a folder of images or a video, and writes the predictions as files.

Exit status: 0, or 1 if an input could not be read (all others are done all the same).
"""

import argparse
import sys

from mmengine.utils import ProgressBar

from mmrepmtl.apis import MultiTaskInferencer
from mmrepmtl.apis.inputs import find_inputs
from mmrepmtl.utils.command import in_one_line


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config_or_workdir', help='a config file, or the work directory of a run')
    parser.add_argument('input', nargs='+', help='images, folders of images, videos')
    parser.add_argument('--checkpoint', help='the file (default: the last one of the work directory)')
    parser.add_argument('--out-dir', default='predictions', help='where the files go (default: predictions)')
    parser.add_argument('--batch-size', type=int, default=1)
    parser.add_argument('--device', help='for example cuda:0 or cpu (default: a GPU where there is one)')
    parser.add_argument(
        '--size', type=int, nargs=2, metavar=('H', 'W'), help='size of the network input, instead of the config'
    )
    parser.add_argument('--trust-checkpoint', action='store_true', help='load a checkpoint that holds more than data')
    return parser.parse_args()


@in_one_line
def main() -> int:
    args = parse_args()
    inferencer = MultiTaskInferencer(
        args.config_or_workdir, args.checkpoint, args.device, args.trust_checkpoint, args.size
    )
    progress = ProgressBar(sum(source.count for source in find_inputs(args.input)))
    done, failed = 0, []
    for result in inferencer.stream(args.input, args.batch_size, args.out_dir):
        progress.update()
        done += result.error is None
        if result.error is not None:
            failed.append(result)
    print(f'\n{done} predicted, {len(failed)} failed: {args.out_dir}')
    for result in failed:
        print(f'failed: {result.source}: {result.error}')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
