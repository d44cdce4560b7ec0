"""Draws how Delta p depends on single parameters, from a comparison; with --config it runs the comparison first.

Delta p is against equal weighting of log losses with the config's own settings. Parameters of training itself
(learning rate, batch size) are changed for equal weighting too, so that its own sensitivity is in the figure. The
method is Rep-MTL at fixed weights; where target_ratio holds the strength of the penalty, a lambda is called a share.
What follows -- goes to `mmrepmtl compare`.

    mmrepmtl analyse sensitivity work_dirs/sweep --parameters lambda_tsr lr --config CONFIG --seeds 3 -- --jobs 2
    mmrepmtl analyse sensitivity work_dirs/sweep --parameters 'temperature=0.3|1|3' --config CONFIG --print
    mmrepmtl analyse sensitivity work_dirs/sweep
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mmrepmtl.analysis.figures import write_figure, write_numbers
from mmrepmtl.analysis.sweep_figures import sensitivity_figure
from mmrepmtl.analysis.sweeps import PAPER_METHOD, YARDSTICK, Score, sweep
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
)
from mmrepmtl.comparison.results_file import Row


class Parameter(NamedTuple):
    """A parameter that has a name and values of its own.

    Attributes:
        key: As ``mmrepmtl compare`` reads it.
        values: The usual ones, joined by bars.
        title: For the axis.
        training: Whether it is one of training itself, which equal weighting has too.
    """

    key: str
    values: str
    title: str
    training: bool = False


#: lambdas and learning rates are those of the paper's figures.
PARAMETERS = {
    'lambda_tsr': Parameter('lambda_tsr', '0.1|0.3|0.5|0.7|0.9|1.1|1.3|1.5|1.7|1.9', 'weight of TSR, lambda_tsr'),
    'lambda_csa': Parameter('lambda_csa', '0.1|0.3|0.5|0.7|0.9|1.1|1.3|1.5|1.7|1.9', 'weight of CSA, lambda_csa'),
    'temperature': Parameter('temperature', '0.1|0.3|1.0|3.0', 'temperature of CSA'),
    'interval': Parameter('interval', '1|2|4|8', 'interval of the penalty, steps'),
    'lr': Parameter('lr', '1e-4|1.5e-4|2e-4|2.5e-4|3e-4|3.5e-4|4e-4|4.5e-4|5e-4', 'learning rate', training=True),
    'batch_size': Parameter('train_dataloader.batch_size', '4|8|16', 'batch size, images', training=True),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    add_sweep_arguments(parser, 'sensitivity')
    parser.add_argument(
        '--parameters',
        nargs='+',
        metavar='NAME[=V|V...]',
        help=f'{", ".join(PARAMETERS)}, or any key that compare takes, with its values (default: all of DIR)',
    )
    parser.add_argument('--method', default=PAPER_METHOD, metavar='NAME', help=f'the method (default: {PAPER_METHOD})')
    parser.add_argument(
        '--yardstick',
        default=YARDSTICK,
        metavar='LABEL',
        help=f'what Delta p is against (default: {YARDSTICK}), or stl',
    )


def parse_parameter(text: str) -> Parameter:
    """NAME or NAME=V|V.

    Raises:
        ValueError: An unknown name without values.
    """
    name, sign, values = text.partition('=')
    known = PARAMETERS.get(name)
    if not values:
        if known is None or sign:
            raise ValueError(
                f'--parameters: {text!r} has no values; write {name}=V|V, or one of {", ".join(PARAMETERS)}'
            )
        return known
    return known._replace(values=values) if known else Parameter(name, values, name)


def entries_of(parameters: Sequence[Parameter], method: str, yardstick: str) -> list[str]:
    """The entries of the comparison."""
    entries = [yardstick]
    for parameter in parameters:
        for name in (method, YARDSTICK) if parameter.training else (method,):
            entries.append(f'{name}:{parameter.key}={parameter.values}')
    return entries


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status of the comparison."""
    out = out_of(args, 'sensitivity')
    parameters = [parse_parameter(text) for text in args.parameters or ()]
    if args.config is not None and not parameters:
        raise ValueError(f'sensitivity: --config runs sweeps; say which: --parameters {" ".join(PARAMETERS)}')
    status = run_comparison(args, entries_of(parameters, args.method, args.yardstick))
    if status is None:
        return 0
    rows = read_rows(args)
    keys = [parameter.key for parameter in parameters] or swept_keys(rows, args.method)
    titles = {known.key: known.title for known in PARAMETERS.values()}
    sweeps: dict[str, dict[str, list[Score]]] = {}
    for key in keys:
        for method in dict.fromkeys((args.method, YARDSTICK)):
            points = sweep(rows, method, key, args.yardstick)
            if points:
                sweeps.setdefault(key, {})[method] = points
    if not sweeps:
        others = [method for method in dict.fromkeys(row.method for row in rows) if swept_keys(rows, method)]
        there = f'; --method may be {" or ".join(others)}' if others else ''
        raise ValueError(f'sensitivity: {args.folder} has no sweep of {args.method} with results{there}')
    say_left_out(rows, args.yardstick)
    titles |= share_titles(args.folder, {key: own[args.method] for key, own in sweeps.items() if args.method in own})
    for key, own in sweeps.items():
        print(f'{titles.get(key, key)}: Delta p against {args.yardstick}')
        for points in own.values():
            print_scores(points, '%')
    write_figure(sensitivity_figure(sweeps, titles, args.yardstick), out)
    numbers = {
        key: {method: [score_numbers(point) for point in points] for method, points in own.items()}
        for key, own in sweeps.items()
    }
    about = dict(yardstick=args.yardstick, titles={key: titles.get(key, key) for key in sweeps}, sweeps=numbers)
    print(f'sensitivity: {out}, {write_numbers(out, about)}')
    return status


def share_titles(folder: str, sweeps: Mapping[str, Sequence[Score]]) -> dict[str, str]:
    """Titles of the lambdas that are no weights, because target_ratio holds the strength; says so.

    Args:
        folder: That of the comparison.
        sweeps: {key: the points of the method}.
    """
    found = {}
    for key, points in sweeps.items():
        name = key.rpartition('.')[2]
        if name not in ('lambda_tsr', 'lambda_csa'):
            continue
        penalties = penalties_of(folder, [point.name for point in points])
        say_unknown(penalties)
        ratio, term = target_ratios(penalties), name.removeprefix('lambda_').upper()
        if ratio:
            found[key] = f'share of {term} at target_ratio {ratio}, {name}'
            print(
                f'{name}: target_ratio={ratio} holds the strength of the penalty, so this is the mix of the two terms; '
                f'--method {PAPER_METHOD} sweeps a weight'
            )
    return found


def swept_keys(rows: Sequence[Row], method: str) -> list[str]:
    """The keys that several entries of a method set alone, in the order of the results."""
    sweeps = {row.label: json.loads(row.sweep) for row in rows if row.method == method and row.split == 'test'}
    keys = [next(iter(own)) for own in sweeps.values() if len(own) == 1]
    return [key for key in dict.fromkeys(keys) if keys.count(key) > 1]
