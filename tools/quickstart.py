#!/usr/bin/env python
"""Trains Rep-MTL on the embedded data set, then prints a table of test metrics and writes a picture."""

import argparse
import time
from pathlib import Path

from mmrepmtl.apis import evaluate, load_config, train
from mmrepmtl.evaluation import save_results

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work-dir', default='work_dirs/quickstart')
    parser.add_argument('--method', help='another method of configs/_base_/methods, for example ew-log')
    parser.add_argument('--seed', type=int)
    args = parser.parse_args()
    config = ROOT / 'configs' / 'synth_rooms' / 'quickstart.py'
    work_dir = Path(args.work_dir)

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


if __name__ == '__main__':
    main()
