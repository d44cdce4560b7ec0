"""Draws the ablation {none, TSR, CSA, both} of Rep-MTL from a comparison; with --config it runs the comparison first.

'none' is equal weighting of log losses, which Rep-MTL adds its terms to; the terms have the paper's fixed weights. The
paper's numbers are drawn beside ours where the penalty is the paper's, so not where target_ratio holds its strength.
What follows -- goes to `mmrepmtl compare`.

    mmrepmtl analyse ablation work_dirs/ablation --config CONFIG --seeds 3 -- --jobs 2
    mmrepmtl analyse ablation work_dirs/ablation
"""

import argparse
from pathlib import Path

from mmrepmtl.analysis.figures import write_figure, write_numbers
from mmrepmtl.analysis.sweep_figures import ablation_figure
from mmrepmtl.analysis.sweeps import PAPER_METHOD, YARDSTICK, ablation, ablation_entries
from mmrepmtl.cli.analyses.sweeps import (
    add_sweep_arguments,
    out_of,
    penalties_of,
    print_scores,
    read_rows,
    run_comparison,
    say_left_out,
    say_unknown,
    score_numbers,
    target_ratios,
    title_of,
)
from mmrepmtl.comparison.paper_rows import benchmark_of, published_rows
from mmrepmtl.comparison.plan import read_plan
from mmrepmtl.comparison.results_file import STL


def published_ablation(folder: str, yardstick: str) -> dict[str, float]:
    """The paper's ablation on the data set of a comparison.

    Against equal weighting of log losses it is the difference of two Delta p against single tasks, as printed.

    Args:
        folder: That of the comparison.
        yardstick: The label that ours is against.

    Returns:
        {name as in the ablation: Delta p}; empty where nothing is published, or not against this yardstick.
    """
    entries = read_plan(Path(folder)).get('entries') or {}
    benchmark = next((found for entry in entries.values() if (found := benchmark_of(entry['settings']))), None)
    if benchmark is None or yardstick not in (YARDSTICK, STL):
        return {}
    rows = published_rows(benchmark, ())
    names = {'none': YARDSTICK, 'TSR': f'{PAPER_METHOD}-tsr', 'CSA': f'{PAPER_METHOD}-csa', 'both': 'rep-mtl'}
    deltas = {name: rows[method].delta_task for name, method in names.items() if method in rows}
    base = deltas.get('none') if yardstick == YARDSTICK else 0.0
    return {} if base is None else {name: value - base for name, value in deltas.items() if value is not None}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    add_sweep_arguments(parser, 'ablation')
    parser.add_argument(
        '--method', default=PAPER_METHOD, metavar='ENTRY', help=f"of compare, for 'both' (default: {PAPER_METHOD})"
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
    rows = read_rows(args)
    scores = ablation(rows, args.method, args.yardstick)
    print(f'Delta p against {args.yardstick}, %')
    say_left_out(rows, args.yardstick)
    print_scores(scores, '%')
    penalties = penalties_of(args.folder, [label for name, label in entries.items() if name != 'none'])
    say_unknown(penalties)
    ratio = target_ratios(penalties)
    through = list(dict.fromkeys(penalty['through'] for penalty in penalties.values() if penalty))
    paper, title = published_ablation(args.folder, args.yardstick), title_of(args)
    if ratio:
        title += f'\nstrength held, target_ratio {ratio}'
        print(f'target_ratio={ratio} holds the strength, also of a term alone: the lambdas are shares, no weights')
    if paper and (ratio or through != ['all'] or None in penalties.values()):
        print(f"the paper's numbers are of fixed weights that reach the heads too: compare {PAPER_METHOD} with them")
        paper = {}
    if paper:
        print('the paper: ' + ', '.join(f'{name} {value:+.2f}' for name, value in paper.items()))
    write_figure(ablation_figure(scores, title, args.yardstick, paper), out)
    points = [score_numbers(score) for score in scores]
    numbers = dict(yardstick=args.yardstick, entries=entries, penalties=penalties, scores=points, paper=paper)
    print(f'ablation: {out}, {write_numbers(out, numbers)}')
    return status
