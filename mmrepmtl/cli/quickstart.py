"""Trains Rep-MTL on the embedded data set, then prints a table of test metrics and writes a picture."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from mmrepmtl.apis import evaluate, load_config, train
from mmrepmtl.evaluation import save_results
from mmrepmtl.utils.command import in_one_line

CONFIG = 'synth_rooms/quickstart'


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog, description=__doc__)
    parser.add_argument('--work-dir', default='work_dirs/quickstart')
    parser.add_argument('--method', help='another method, for example ew-log; `mmrepmtl methods` lists them')
    parser.add_argument('--seed', type=int)
    return parser.parse_args(argv)


@in_one_line
def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Runs the command; ``argv`` are its arguments, by default those of the process."""
    args = parse_args(argv, prog)
    work_dir, config = Path(args.work_dir), f'mmrepmtl::{CONFIG}'

    start = time.time()
    train(load_config(config, args.method, str(work_dir), seed=args.seed))
    minutes = (time.time() - start) / 60
    cfg = load_config(config, args.method, str(work_dir))
    result = evaluate(cfg, work_dir / f'epoch_{cfg.train_cfg.max_epochs}.pth', show_dir=work_dir)
    save_results(
        work_dir / 'metrics.json',
        result['metrics'],
        dict(
            split='test',
            selection='last checkpoint, no selection',
            constant=result['constant'],
            training_minutes=minutes,
        ),
    )
    print(f'trained in {minutes:.1f} minutes; metrics: {work_dir / "metrics.json"}')
