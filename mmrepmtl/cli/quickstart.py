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
    """Reads ``argv``, or the arguments of the process; ``prog`` is the name of the command in messages."""
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

    print(f'1 of 2: training, into {work_dir}', flush=True)
    start = time.time()
    train(load_config(config, args.method, str(work_dir), seed=args.seed), quiet=True)
    minutes = (time.time() - start) / 60
    print(
        f'\n2 of 2: test on rooms that the training has not seen, after {minutes:.1f} minutes of training', flush=True
    )
    cfg = load_config(config, args.method, str(work_dir))
    checkpoint = work_dir / f'epoch_{cfg.train_cfg.max_epochs}.pth'
    result = evaluate(cfg, checkpoint, show_dir=work_dir, quiet=True)
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
    print(files_table(work_dir, checkpoint, start))


def files_table(work_dir: Path, checkpoint: Path, start: float) -> str:
    """The files of the run, one a line, with what each holds; logs are those that were written since ``start``."""
    files = {
        'predictions.png': 'truth and prediction of some test images: look at it first',
        'metrics.json': 'the table above',
        checkpoint.name: 'the trained model; `mmrepmtl demo` serves it, `mmrepmtl infer` predicts with it',
        'quickstart.py': 'the config, complete',
    }
    logs = [file for file in sorted(work_dir.glob('*/*.log')) if file.stat().st_mtime >= start]
    files |= {str(file.relative_to(work_dir)): 'the log' for file in logs}
    width = max(len(name) for name in files)
    return '\n'.join([f'\nin {work_dir}:', *(f'  {name:<{width}}  {text}' for name, text in files.items())])
