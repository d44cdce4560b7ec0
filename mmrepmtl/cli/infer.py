"""Predicts all tasks on images, videos and folders of them, and writes the predictions as files.

An input that cannot be read or predicted is named at the end with the reason; all others are done. Exit status: 0; 1 if
something failed or the disk is full; 2 if nothing was begun, with one line that says what is wrong.
"""

import argparse
import sys
from collections.abc import Sequence

from mmengine.utils import ProgressBar

from mmrepmtl.apis import MultiTaskInferencer
from mmrepmtl.apis.inputs import MAX_PIXELS, find_inputs
from mmrepmtl.cli.arguments import add_checkpoint, add_device, add_model, add_size, add_trust
from mmrepmtl.utils.command import in_one_line
from mmrepmtl.utils.text import one_line


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Reads ``argv``, or the arguments of the process; ``prog`` is the name of the command in messages."""
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model(parser)
    parser.add_argument('input', nargs='+', help='images, videos, folders of them')
    add_checkpoint(parser)
    parser.add_argument('--out-dir', default='predictions', help='where the files go (default: predictions)')
    parser.add_argument('--batch-size', type=int, default=1)
    add_device(parser)
    add_size(parser)
    parser.add_argument(
        '--max-pixels',
        type=int,
        default=MAX_PIXELS,
        metavar='N',
        help=f'pictures of more pixels are refused before they are decoded (default: {MAX_PIXELS})',
    )
    add_trust(parser)
    return parser.parse_args(argv)


def refuse(error: Exception, status: int) -> int:
    """One line on standard error."""
    print(f'infer: error: {one_line(str(error) or type(error).__name__)}', file=sys.stderr)
    return status


@in_one_line
def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Runs the command; ``argv`` are its arguments, by default those of the process."""
    for stream in (sys.stdout, sys.stderr):
        # Names of files may hold what the terminal's encoding does not.
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='backslashreplace')
    args = parse_args(argv, prog)
    done, failed, results = 0, [], None
    try:
        inferencer = MultiTaskInferencer(
            args.config_or_workdir, args.checkpoint, args.device, args.trust_checkpoint, args.size, args.max_pixels
        )
        total = sum(source.count for source in find_inputs(args.input, args.max_pixels))
        results = inferencer.stream(args.input, args.batch_size, args.out_dir)
        # The first one brings the checks of what was given.
        result = next(results, None)
    except (OSError, ValueError) as error:
        return refuse(error, 2 if results is None or not isinstance(error, OSError) else 1)
    progress, stopped = ProgressBar(total), None
    try:
        while result is not None:
            progress.update()
            done += result.error is None
            if result.error is not None:
                failed.append((result.source, result.error))
            result = next(results, None)
    except (OSError, KeyboardInterrupt) as error:
        stopped = error
    finally:
        results.close()
    print(f'\n{done} predicted, {len(failed)} failed: {one_line(args.out_dir)}')
    for source, reason in failed:
        print(f'failed: {one_line(source)}: {one_line(reason)}')
    if stopped is not None:
        why = 'interrupted' if isinstance(stopped, KeyboardInterrupt) else stopped
        told = OSError(f'stopped after {done + len(failed)} of {total}, whose files are whole: {why}')
        return refuse(told, 130 if why == 'interrupted' else 1)
    return 1 if failed else 0
