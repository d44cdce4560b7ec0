"""Trains a model from a config."""

import argparse
from collections.abc import Sequence

from mmrepmtl.apis import apply_selection, finish_launch, load_config, train, train_single_tasks
from mmrepmtl.cli.arguments import add_config, add_config_options, add_launcher, add_trust, add_work_dir, parse_launched
from mmrepmtl.engine import Interrupted
from mmrepmtl.utils.command import in_one_line


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Reads ``argv``, or the arguments of the process; ``prog`` is the name of the command in messages."""
    parser = argparse.ArgumentParser(prog, description=__doc__)
    add_config(parser)
    parser.add_argument('--method', help='the method, as `mmrepmtl methods` lists them; stl trains each task alone')
    parser.add_argument('--regularizer', help="overlay whose regularisers are added to the method's, e.g. rep-mtl")
    add_work_dir(parser, 'where the run writes')
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
    add_trust(parser, several=True)
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
    add_config_options(parser)
    add_launcher(parser)
    return parse_launched(parser, argv)


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
