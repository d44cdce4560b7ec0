"""The analyses of the paper, each with a figure and its numbers as JSON beside it; docs/analyses.md explains them.

mmrepmtl analyse spectrum rep-mtl=work_dirs/a ew=work_dirs/b
mmrepmtl analyse ablation work_dirs/ablation --config CONFIG --seeds 3 -- --jobs 2
"""

import argparse
import sys
from collections.abc import Sequence

from mmrepmtl.cli.analyses import ablation, conflict, cost, epoch_time, sensitivity, spectrum
from mmrepmtl.utils.command import in_one_line

ANALYSES = {
    'spectrum': (spectrum, 'power-law exponents of the layers of encoder and heads'),
    'cost': (cost, 'parameters and FLOPs of the parts, and of a training step of each method'),
    'conflict': (conflict, "cosines and norms of the tasks' gradients, at Z and at the shared parameters"),
    'ablation': (ablation, 'Delta p of Rep-MTL with none, one and both of its terms'),
    'sensitivity': (sensitivity, 'Delta p over values of lambda, temperature, learning rate, ...'),
    'time': (epoch_time, 'training time per epoch of all methods'),
}
#: Analyses that can run a comparison; arguments behind -- go to it.
COMPARING = ('ablation', 'sensitivity', 'time')


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Reads ``argv``, or the arguments of the process; ``prog`` is the name of the command in messages."""
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='analysis', required=True, metavar='ANALYSIS')
    for name, (module, line) in ANALYSES.items():
        own = commands.add_parser(
            name, help=line, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(own)
    arguments = list(sys.argv[1:] if argv is None else argv)
    place = arguments.index('--') if '--' in arguments else len(arguments)
    args = parser.parse_args(arguments[:place])
    args.compare_options = arguments[place + 1 :]
    if args.compare_options and args.analysis not in COMPARING:
        parser.error(f'{args.analysis} runs no comparison, so nothing may follow --')
    return args


@in_one_line
def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Runs the command; ``argv`` are its arguments, by default those of the process.

    Returns:
        The exit status: that of the comparison, where one was run.
    """
    args = parse_args(argv, prog)
    return ANALYSES[args.analysis][0].run(args) or 0
