"""Trains a model from a config."""

import argparse
import os
from collections.abc import Sequence

from mmengine.config import DictAction

from mmrepmtl.apis import apply_selection, finish_launch, load_config, train, train_single_tasks
from mmrepmtl.engine import Interrupted
from mmrepmtl.utils.command import in_one_line


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog, description=__doc__)
    parser.add_argument('config', help='a config file, or the name of one of this package (FOLDER/NAME)')
    parser.add_argument('--method', help='the method, as `mmrepmtl methods` lists them; stl trains each task alone')
    parser.add_argument('--regularizer', help="overlay whose regularisers are added to the method's, e.g. rep-mtl")
    parser.add_argument('--work-dir', help='where the run writes (default: work_dirs/CONFIG)')
    parser.add_argument(
        '--resume',
        nargs='?',
        const=True,
        default=False,
        metavar='PATH',
        help='go on from PATH, or from the last checkpoint of the work directory',
    )
    parser.add_argument(
        '--force-resume', action='store_true', help='resume although the method or the number of processes differs'
    )
    parser.add_argument('--trust-checkpoint', action='store_true', help='load checkpoints that hold more than data')
    parser.add_argument(
        '--selection',
        choices=['last', 'best-val', 'last10'],
        default='last',
        help='which checkpoint counts: the last, the best in validation (best.pth), or the mean of the last 10 epochs',
    )
    parser.add_argument(
        '--selection-metric', metavar='TASK/METRIC', help='what best-val goes by (default: all metrics)'
    )
    parser.add_argument('--force-selection', action='store_true', help='select although it is on the test set')
    parser.add_argument(
        '--encoder-checkpointing',
        action='store_true',
        help="recompute the encoder's activations in the backward pass: less memory, more time, the same gradients",
    )
    parser.add_argument(
        '--compile-encoder',
        nargs='?',
        const='inductor',
        metavar='BACKEND',
        help='torch.compile the encoder (default backend: inductor); heads cannot be compiled',
    )
    parser.add_argument('--precision', choices=['fp32', 'bf16', 'fp16'])
    parser.add_argument('--seed', type=int)
    parser.add_argument(
        '--quiet', action='store_true', help='keep the log in its file; show what runs, how far it is, and the results'
    )
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
    cfg = load_config(
        args.config,
        method=args.method,
        work_dir=args.work_dir,
        resume=args.resume,
        precision=args.precision,
        seed=args.seed,
        data_root=args.data_root,
        cfg_options=args.cfg_options,
        launcher=args.launcher,
        force_resume=args.force_resume,
        regularizer=args.regularizer,
        encoder_checkpointing=args.encoder_checkpointing,
        compile_encoder=args.compile_encoder,
    )
    apply_selection(cfg, args.selection, args.selection_metric, args.force_selection)
    run = train_single_tasks if cfg.get('single_task') else train
    try:
        run(cfg, trust_checkpoint=args.trust_checkpoint, quiet=args.quiet)
    except Interrupted:  # on every rank, with a checkpoint written
        finish_launch()
        raise
    finish_launch()
