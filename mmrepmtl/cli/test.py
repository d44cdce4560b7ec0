"""Evaluates a checkpoint: a table of metrics beside the best constant prediction, Delta p, pictures."""

import argparse
import os
import sys
from collections.abc import Sequence

from mmengine.config import DictAction

from mmrepmtl.apis import evaluate, finish_launch, load_config
from mmrepmtl.apis.config import check_comparable
from mmrepmtl.apis.splits import check_split, validation_as_test
from mmrepmtl.evaluation import load_baseline, load_results
from mmrepmtl.utils.command import in_one_line


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog, description=__doc__)
    parser.add_argument('config', help='a config file, or the name of one of this package (FOLDER/NAME)')
    parser.add_argument('checkpoint')
    parser.add_argument('--work-dir', help='where test_metrics.json goes (default: work_dirs/CONFIG)')
    parser.add_argument(
        '--stl', nargs='+', metavar='RESULTS.json', help='results of the single-task baseline, for Delta p'
    )
    parser.add_argument('--split', choices=['test', 'val'], default='test', help='val: on the validation data instead')
    parser.add_argument('--show-dir', help='where predictions.png goes')
    parser.add_argument('--no-constant', action='store_true', help='leave out the best constant predictions')
    parser.add_argument('--trust-checkpoint', action='store_true', help='load a checkpoint that holds more than data')
    parser.add_argument('--data-root', help='folder of the data set')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='key=value pairs that override the config')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


@in_one_line
def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Runs the command; ``argv`` are its arguments, by default those of the process."""
    args = parse_args(argv, prog)
    try:
        # First of all: a damaged file must not be found after hours.
        baselines = {path: load_results(path)[1] for path in args.stl or ()}
        stl = load_baseline(*args.stl) if args.stl else None
        cfg = load_config(
            args.config,
            work_dir=args.work_dir,
            data_root=args.data_root,
            cfg_options=args.cfg_options,
            launcher=args.launcher,
        )
        if args.split == 'val':
            validation_as_test(cfg)
        if args.stl:
            check_split(cfg, 'test', 'test')
            check_comparable(cfg, baselines)
    except (OSError, ValueError) as error:
        sys.exit(f'test: error: {error}')
    evaluate(cfg, args.checkpoint, stl, not args.no_constant, args.show_dir, trust_checkpoint=args.trust_checkpoint)
    finish_launch()
