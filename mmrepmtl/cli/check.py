"""Reads all data of a config before hours are spent on them, and compares the parts of the config with each other.

Each sample is loaded, checked and sent through its pipeline. One line per defect; the exit status is 1 if there is one.
"""

import argparse
import os
from collections.abc import Sequence

from mmrepmtl.apis import load_config
from mmrepmtl.cli.arguments import add_config, add_config_options
from mmrepmtl.inspection.dataset_check import SPLITS, check_dataset
from mmrepmtl.utils.command import in_one_line


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Reads ``argv``, or the arguments of the process; ``prog`` is the name of the command in messages."""
    parser = argparse.ArgumentParser(prog, description=__doc__)
    add_config(parser)
    parser.add_argument('--split', choices=[*SPLITS, 'all'], default='all')
    workers = min(4, os.cpu_count() or 1)
    parser.add_argument('--workers', type=int, default=workers, help=f'processes; 0 is this one (default: {workers})')
    parser.add_argument('--max-errors', type=int, default=20, help='leave a data set after so many (default: 20)')
    parser.add_argument(
        '--allow-partial', action='store_true', help='another number of samples than the official one is no defect'
    )
    add_config_options(parser)
    return parser.parse_args(argv)


@in_one_line
def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Runs the command; ``argv`` are its arguments, by default those of the process."""
    args = parse_args(argv, prog)
    cfg = load_config(args.config, data_root=args.data_root, cfg_options=args.cfg_options)
    splits = SPLITS if args.split == 'all' else [args.split]
    return 1 if check_dataset(cfg, splits, args.workers, args.max_errors, args.allow_partial) else 0
