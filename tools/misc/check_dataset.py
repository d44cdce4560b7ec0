#!/usr/bin/env python
"""Reads all data of a config before hours are spent on them, and compares the parts of the config with each other.

Each sample is loaded, checked and sent through its pipeline. One line per defect; the exit status is 1 if there is one.
"""

import argparse
import os
import sys

from mmengine.config import DictAction

from mmrepmtl.apis import load_config
from mmrepmtl.apis.dataset_check import SPLITS, check_dataset


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('--split', choices=[*SPLITS, 'all'], default='all')
    workers = min(4, os.cpu_count() or 1)
    parser.add_argument('--workers', type=int, default=workers, help=f'processes; 0 is this one (default: {workers})')
    parser.add_argument('--max-errors', type=int, default=20, help='leave a data set after so many (default: 20)')
    parser.add_argument(
        '--allow-partial', action='store_true', help='another number of samples than the official one is no defect'
    )
    parser.add_argument('--data-root', help='folder of the data set')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='key=value pairs that override the config')
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    cfg = load_config(args.config, data_root=args.data_root, cfg_options=args.cfg_options)
    splits = SPLITS if args.split == 'all' else [args.split]
    return 1 if check_dataset(cfg, splits, args.workers, args.max_errors, args.allow_partial) else 0


if __name__ == '__main__':
    sys.exit(main())
