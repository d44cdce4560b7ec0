"""Common parts of ``ablation``, ``sensitivity`` and ``time``: they draw a comparison, and can run it before."""

import argparse
import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrepmtl.analysis.figures import check_figure_format
from mmrepmtl.analysis.sweeps import Score, counting_metrics
from mmrepmtl.cli import compare
from mmrepmtl.comparison.paper_rows import penalty_of
from mmrepmtl.comparison.plan import PLAN, read_plan
from mmrepmtl.comparison.results_file import RESULTS, Row, read_results


def add_sweep_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Adds the arguments of a command that draws the results of a comparison."""
    parser.add_argument('folder', metavar='DIR', help='work directory of an `mmrepmtl compare`')
    parser.add_argument('--config', help='run the comparison first, on this config; what is done is not run again')
    parser.add_argument('--seeds', nargs='+', default=['3'], metavar='N', help='as for compare (default: 3)')
    parser.add_argument('--print', action='store_true', help='print the command of the comparison, and do nothing')
    parser.add_argument(
        '--out', help=f'the figure: .png, .jpg, .pdf or .svg (default: DIR/{name}.png); .json beside it'
    )


def out_of(args: argparse.Namespace, name: str) -> Path:
    """The file of the figure."""
    out = Path(args.folder) / f'{name}.png' if args.out is None else Path(args.out)
    check_figure_format(out)
    return out


def run_comparison(args: argparse.Namespace, entries: Sequence[str]) -> int | None:
    """Runs ``mmrepmtl compare`` with these entries, where the command line names a config.

    Returns:
        Its exit status; None after --print or compare's --dry-run, when there is nothing more to do.

    Raises:
        ValueError: --print or options for compare without --config.
    """
    if args.config is None:
        if args.print or args.compare_options:
            raise ValueError('--print and what follows -- are about the comparison to run; give its --config')
        return 0
    command = [args.config, '--methods', *entries, '--seeds', *args.seeds, '--work-dir', args.folder]
    command += args.compare_options
    if args.print:
        print(shlex.join(['mmrepmtl', 'compare', *command]))
        return None
    status = compare.main(command, prog='mmrepmtl compare') or 0
    return None if '--dry-run' in args.compare_options else status


def read_rows(args: argparse.Namespace) -> list[Row]:
    """The results of the comparison.

    Raises:
        ValueError: There are none yet; says how to get them.
    """
    file = Path(args.folder) / RESULTS
    if not file.is_file():
        raise ValueError(f'{file} is not there; run the comparison: add --config CONFIG')
    return read_results(file)


def title_of(args: argparse.Namespace) -> str:
    """The config of the comparison, without its folder."""
    config = read_plan(Path(args.folder)).get('config') or args.config or args.folder
    return Path(config).name.removesuffix('.py')


def epochs_of(folder: Path) -> dict[str, int]:
    """{label: epochs of its training} of the entries of a comparison that are trained by epochs."""
    entries = read_plan(folder).get('entries') or {}
    found = {label: (entry['settings'].get('train_cfg') or {}).get('max_epochs') for label, entry in entries.items()}
    return {label: epochs for label, epochs in found.items() if epochs}


def penalties_of(folder: str, labels: Iterable[str]) -> dict[str, dict[str, str] | None]:
    """The arguments of Rep-MTL of some entries of a comparison.

    Args:
        folder: That of the comparison.
        labels: The entries.

    Returns:
        {label: as :func:`mmrepmtl.comparison.paper_rows.penalty_of`}; None where ``comparison.json`` has no such entry.
    """
    entries = read_plan(Path(folder)).get('entries') or {}
    return {label: penalty_of(entries[label]['settings']) if label in entries else None for label in labels}


def target_ratios(penalties: Mapping[str, Mapping[str, str] | None]) -> str:
    """The ratios that penalties are held at, such as '0.05'; '' where their weights are fixed."""
    ratios = [penalty['target_ratio'] for penalty in penalties.values() if penalty]
    return ', '.join(dict.fromkeys(ratio for ratio in ratios if ratio != 'none'))


def say_unknown(penalties: Mapping[str, Mapping[str, str] | None]) -> None:
    """Prints the entries whose settings are not known, if there are any."""
    unknown = [label for label, penalty in penalties.items() if penalty is None]
    if unknown:
        print(f'{PLAN} has no settings of {", ".join(unknown)}: whether target_ratio holds their strength is not known')


def score_numbers(score: Score) -> dict[str, Any]:
    """A score for JSON."""
    value = None if math.isnan(score.x) else score.x
    return dict(name=score.name, value=value, mean=score.mean, std=score.std, by_seed=score.by_seed)


def say_left_out(rows: Sequence[Row], yardstick: str) -> None:
    """Prints the metrics that cannot count in Delta p, if there are any."""
    left_out = counting_metrics(rows, yardstick)[1]
    if left_out:
        print(f'without {", ".join(left_out)}: {yardstick} is 0 or not finite there')


def print_scores(scores: Sequence[Score], unit: str) -> None:
    """Prints mean and deviation of each."""
    width = max(len(score.name) for score in scores)
    for score in scores:
        spread = '' if math.isnan(score.std) else f' ± {score.std:.2f}'
        print(f'  {score.name:{width}}  {score.mean:+.2f}{spread} {unit}, {len(score.by_seed)} seed(s)')


def machines_of(rows: Sequence[Row]) -> set[str]:
    """'device, N threads' of all runs."""
    versions = [json.loads(row.versions) for row in rows if row.seed is not None]
    return {f'{own.get("device", "?")}, {own.get("threads", "?")} threads' for own in versions}
