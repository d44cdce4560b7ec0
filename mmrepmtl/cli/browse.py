"""Writes a sheet of what the network is fed, after augmentation and preprocessing: one row per sample, aligned."""

import argparse
from collections.abc import Sequence

from mmrepmtl.apis import load_config
from mmrepmtl.cli.arguments import add_config, add_config_options
from mmrepmtl.inspection.browse import browse_dataset
from mmrepmtl.utils.command import in_one_line


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Reads ``argv``, or the arguments of the process; ``prog`` is the name of the command in messages."""
    parser = argparse.ArgumentParser(prog, description=__doc__)
    add_config(parser)
    parser.add_argument('--split', choices=['train', 'val', 'test'], default='train')
    parser.add_argument('--num', type=int, default=8, help='samples, spread evenly over the data set (default: 8)')
    parser.add_argument('--out', default='dataset.png', help='the picture, .png or .jpg (default: dataset.png)')
    parser.add_argument('--seed', type=int, help="of the augmentation (default: the run's)")
    parser.add_argument('--epoch', type=int, default=0, help='of the augmentation (default: 0)')
    add_config_options(parser)
    return parser.parse_args(argv)


@in_one_line
def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Runs the command; ``argv`` are its arguments, by default those of the process."""
    args = parse_args(argv, prog)
    cfg = load_config(args.config, data_root=args.data_root, cfg_options=args.cfg_options)
    numbers = browse_dataset(cfg, args.out, args.split, args.num, args.seed, args.epoch)
    print(f'{args.out}: samples {", ".join(map(str, numbers))} of {args.split}')
