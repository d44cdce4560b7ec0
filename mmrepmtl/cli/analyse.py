"""The analyses of the paper, each with a figure and its numbers as JSON beside it; docs/analyses.md explains them.

mmrepmtl analyse spectrum rep-mtl=work_dirs/a ew=work_dirs/b
"""

import argparse
from collections.abc import Sequence

from mmrepmtl.cli.analyses import conflict, cost, spectrum
from mmrepmtl.utils.command import in_one_line

ANALYSES = {
    'spectrum': (spectrum, 'power-law exponents of the layers of encoder and heads'),
    'cost': (cost, 'parameters and FLOPs of the parts, and of a training step of each method'),
    'conflict': (conflict, "cosines and norms of the tasks' gradients, at Z and at the parameters"),
}


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='analysis', required=True, metavar='ANALYSIS')
    for name, (module, line) in ANALYSES.items():
        own = commands.add_parser(
            name, help=line, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(own)
    return parser.parse_args(argv)


@in_one_line
def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Runs the command; ``argv`` are its arguments, by default those of the process."""
    args = parse_args(argv, prog)
    ANALYSES[args.analysis][0].run(args)
