"""Compares methods over seeds: trains and tests what is missing, then writes results.csv, a table and a report."""

import argparse
from collections.abc import Sequence

from mmrepmtl.cli.arguments import add_config
from mmrepmtl.comparison.comparison import Comparison
from mmrepmtl.comparison.plan import Options
from mmrepmtl.utils.command import in_one_line


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Reads ``argv``, or the arguments of the process; ``prog`` is the name of the command in messages."""
    parser = argparse.ArgumentParser(prog, description=__doc__)
    add_config(parser)
    parser.add_argument(
        '--methods',
        nargs='+',
        required=True,
        metavar='ENTRY',
        help='NAME, NAME+rep-mtl, CONFIG.py, each with :key=value[,key=value], or :key=value|value for several',
    )
    parser.add_argument(
        '--seeds', nargs='+', type=int, default=[3], metavar='N', help='one number: so many, from 0; several: these'
    )
    parser.add_argument('--work-dir', required=True, help='folder of the comparison; the same one goes on with it')
    parser.add_argument('--known', nargs='+', default=[], metavar='RESULTS.csv', help='rows of runs that are done')
    parser.add_argument(
        '--select-on', choices=['val'], help='of several values test only the best one on validation data'
    )
    parser.add_argument('--dry-run', action='store_true', help='print the plan and start nothing')
    parser.add_argument(
        '--jobs', type=int, metavar='N', help='runs at once (default: 1; with --slurm all); they share cores and GPUs'
    )
    parser.add_argument('--device', default='auto', help='auto, cpu, or numbers of GPUs: 0,2')
    parser.add_argument('--slurm', metavar='PARTITION', help='run on a Slurm cluster')
    parser.add_argument(
        '--slurm-options', nargs='+', default=[], metavar='KEY=VALUE', help='of submitit, such as gpus_per_node=1'
    )
    parser.add_argument('--selection', choices=['last', 'best-val', 'last10'], default='last', help='as for train')
    parser.add_argument('--selection-metric', metavar='TASK/METRIC', help='as for train')
    parser.add_argument('--precision', choices=['fp32', 'bf16', 'fp16'])
    parser.add_argument('--data-root', help='folder of the data set')
    parser.add_argument(
        '--gradients',
        type=int,
        default=50,
        metavar='N',
        help="measure norms and cosines of the tasks' gradients every N iterations, for the report; 0 never",
    )
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='for all runs')
    return parser.parse_args(argv)


@in_one_line
def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Runs the command; ``argv`` are its arguments, by default those of the process.

    Returns:
        The exit status: 1 if a run failed, 128 and the signal if one stopped the comparison.
    """
    args = parse_args(argv, prog)
    options = Options(
        tuple(args.cfg_options), args.selection, args.selection_metric, args.precision, args.data_root, args.gradients
    )
    runs = (args.config, args.methods, args.seeds, args.work_dir)
    comparison = Comparison(*runs, options, args.known, args.select_on)
    if args.dry_run:
        print(*comparison.plan_lines(), sep='\n')
        return 0
    return comparison.run(args.jobs, args.device, args.slurm, args.slurm_options)
