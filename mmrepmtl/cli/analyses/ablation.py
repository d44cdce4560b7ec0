"""Draws the ablation {none, TSR, CSA, both} of Rep-MTL from a comparison; with --config it runs the comparison first.

'none' is equal weighting of log losses, which Rep-MTL adds its terms to. What follows -- goes to `mmrepmtl compare`.

    mmrepmtl analyse ablation work_dirs/ablation --config CONFIG --seeds 3 -- --jobs 2
    mmrepmtl analyse ablation work_dirs/ablation
"""

import argparse

from mmrepmtl.analysis.figures import write_figure, write_numbers
from mmrepmtl.analysis.sweep_figures import ablation_figure
from mmrepmtl.analysis.sweeps import YARDSTICK, ablation, ablation_entries
from mmrepmtl.cli.analyses.sweeps import (
    add_sweep_arguments,
    out_of,
    print_scores,
    read_rows,
    run_comparison,
    score_numbers,
    title_of,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    add_sweep_arguments(parser, 'ablation')
    parser.add_argument(
        '--method', default='rep-mtl', metavar='ENTRY', help="of compare, for 'both' (default: rep-mtl)"
    )
    parser.add_argument(
        '--yardstick',
        default=YARDSTICK,
        metavar='LABEL',
        help=f'what Delta p is against (default: {YARDSTICK}), or stl',
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status of the comparison."""
    out = out_of(args, 'ablation')
    entries = ablation_entries(args.method)
    status = run_comparison(args, list(dict.fromkeys([args.yardstick, *entries.values()])))
    if status is None:
        return 0
    scores = ablation(read_rows(args), args.method, args.yardstick)
    print(f'Delta p against {args.yardstick}, %')
    print_scores(scores, '%')
    write_figure(ablation_figure(scores, title_of(args), args.yardstick), out)
    numbers = dict(yardstick=args.yardstick, entries=entries, scores=[score_numbers(score) for score in scores])
    print(f'ablation: {out}, {write_numbers(out, numbers)}')
    return status
