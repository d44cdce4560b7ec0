"""Draws the training time per epoch of all methods, from a comparison; with --config it runs the comparison first.

The time is that of whole trainings: the start, data, validations and checkpoints are in it; the median time of a step
is printed beside it. Compare times only of runs that had the machine to themselves. What follows -- goes to
`mmrepmtl compare`.

    mmrepmtl analyse time work_dirs/times --config CONFIG --seeds 1 -- --cfg-options train_cfg.max_epochs=2
    mmrepmtl analyse time work_dirs/times
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmrepmtl.analysis.figures import write_figure, write_numbers
from mmrepmtl.analysis.sweep_figures import time_figure
from mmrepmtl.analysis.sweeps import Score, epoch_times
from mmrepmtl.apis import available_methods
from mmrepmtl.cli.analyses.sweeps import (
    add_sweep_arguments,
    epochs_of,
    machines_of,
    out_of,
    read_rows,
    run_comparison,
    score_numbers,
    title_of,
)
from mmrepmtl.comparison.results_file import Row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    add_sweep_arguments(parser, 'time')
    parser.add_argument(
        '--methods', nargs='+', metavar='ENTRY', help='of compare (default: all, without the values of sweeps)'
    )
    parser.add_argument('--reference', default='ew', metavar='LABEL', help='what ratios are made with (default: ew)')


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status of the comparison."""
    out = out_of(args, 'time')
    entries: Sequence[str] = args.methods or (available_methods(args.config) if args.config else ())
    status = run_comparison(args, entries)
    if status is None:
        return 0
    rows = read_rows(args)
    # The values of a sweep take the time of their method.
    rows = [row for row in rows if (row.label in args.methods if args.methods else json.loads(row.sweep) == {})]
    scores = epoch_times(rows, epochs_of(Path(args.folder)))
    steps = step_times(rows)
    print_times(scores, args.reference, steps)
    machines = machines_of(rows)
    if len(machines) > 1:
        print(f'the runs were made on different machines ({"; ".join(sorted(machines))}): times cannot be compared')
    write_figure(time_figure(scores, title_of(args), args.reference), out)
    points = [score_numbers(score) for score in scores]
    numbers = dict(unit='seconds per epoch', machines=sorted(machines), scores=points, step_seconds=steps)
    print(f'time: {out}, {write_numbers(out, numbers)}')
    return status


def step_times(rows: Sequence[Row]) -> dict[str, float]:
    """{label: seconds of a training step, the median of each run, mean over runs} of the runs whose log says so."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if row.seed is not None and row.step_seconds:
            found.setdefault(row.label, {})[row.seed] = row.step_seconds
    return {label: statistics.fmean(own.values()) for label, own in found.items()}


def print_times(scores: Sequence[Score], reference: str, steps: Mapping[str, float]) -> None:
    """Prints seconds per epoch, the ratio to the reference, if that is there, and seconds per step."""
    base = next((score.mean for score in scores if score.name == reference), None)
    width = max(len(score.name) for score in scores)
    print('training time per epoch, s')
    for score in scores:
        ratio = f'  {score.mean / base:5.2f} x {reference}' if base else ''
        step = f'  {steps[score.name]:.3g} s per step' if score.name in steps else ''
        print(f'  {score.name:{width}}  {score.mean:8.2f}{ratio}  {len(score.by_seed)} seed(s){step}')
