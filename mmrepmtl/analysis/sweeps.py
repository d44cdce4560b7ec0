"""From the results of a comparison to the points of its ablation, its sweeps and its training times.

Delta p is paired: each run is compared with the yardstick's run of the same seed, and the deviation is that over seeds.
"""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from mmrepmtl.evaluation import delta_p_task
from mmrepmtl.evaluation.metric_table import counts_in_delta_p

#: Equal weighting of log losses, what Rep-MTL adds its penalty to: the 'none' of the ablation.
YARDSTICK = 'ew-log'
#: Rep-MTL as in the paper, with fixed weights: what its ablation and sweeps are about.
PAPER_METHOD = 'rep-mtl-paper'
#: Methods whose terms alone are overlays of their own, -tsr and -csa.
WITH_TERMS = (PAPER_METHOD, 'rep-mtl')


class ResultRow(Protocol):
    """One metric of one run; ``mmrepmtl.comparison.results_file.Row`` is one."""

    @property
    def label(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def seed(self) -> int | None: ...
    @property
    def split(self) -> str: ...
    @property
    def metric(self) -> str: ...
    @property
    def value(self) -> float: ...
    @property
    def higher_is_better(self) -> bool: ...
    @property
    def train_seconds(self) -> float | None: ...
    @property
    def step_seconds(self) -> float | None: ...
    @property
    def sweep(self) -> str: ...


class Score(NamedTuple):
    """A value for each seed.

    Attributes:
        name: The entry, or its place in the ablation.
        x: The value of the parameter of a sweep, else NaN.
        by_seed: {seed: value}.
    """

    name: str
    x: float
    by_seed: Mapping[int, float]

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return statistics.fmean(self.by_seed.values())

    @property
    def std(self) -> float:
        """The sample deviation over seeds; NaN of one."""
        return statistics.stdev(self.by_seed.values()) if len(self.by_seed) > 1 else math.nan


def counting_metrics(rows: Iterable[ResultRow], yardstick: str = YARDSTICK) -> tuple[list[str], list[str]]:
    """The metrics that count in Delta p against an entry, on the test split.

    Args:
        rows: Those of ``results.csv``.
        yardstick: The label of what is compared with.

    Returns:
        Those that count, and those that would if the yardstick were above 0 with every seed: there is no relative
        change from 0.

    Raises:
        ValueError: None counts.
    """
    values: dict[str, list[float]] = {}
    for row in rows:
        if row.label == yardstick and row.split == 'test' and counts_in_delta_p(row.metric):
            values.setdefault(row.metric, []).append(row.value)
    kept = [metric for metric, own in values.items() if all(0 < value < math.inf for value in own)]
    if values and not kept:
        raise ValueError(f'no metric of {yardstick} is above 0 with every seed, so there is no Delta p against it')
    return kept, [metric for metric in values if metric not in kept]


def paired_delta_p(rows: Iterable[ResultRow], label: str, yardstick: str = YARDSTICK) -> dict[int, float]:
    """Delta p (tasks alike, percent) of one entry against another, seed by seed, by :func:`counting_metrics`.

    Args:
        rows: Those of ``results.csv``.
        label: The entry.
        yardstick: The label of what it is compared with.

    Returns:
        {seed: Delta p} for the seeds that both have.

    Raises:
        ValueError: One of the two has no results, they have no seed in common, or Delta p is not defined; says so.
    """
    rows = [row for row in rows if row.split == 'test' and row.seed is not None]
    directions = {row.metric: row.higher_is_better for row in rows}
    found: dict[str, dict[int, dict[str, float]]] = {label: {}, yardstick: {}}
    for row in rows:
        if row.label in found and row.seed is not None:
            found[row.label].setdefault(row.seed, {})[row.metric] = row.value
    for name, runs in found.items():
        if not runs:
            there = ', '.join(sorted({row.label for row in rows})) or 'nothing'
            raise ValueError(f'the results have no tested run of {name}, only of {there}; add it to the comparison')
    seeds = sorted(set(found[label]) & set(found[yardstick]))
    if not seeds:
        raise ValueError(f'{label} and {yardstick} have no seed in common, so they cannot be compared in pairs')
    keys = counting_metrics(rows, yardstick)[0]
    return {seed: delta_p_task(found[label][seed], found[yardstick][seed], directions, keys) for seed in seeds}


def ablation_entries(method: str) -> dict[str, str]:
    """{name: entry of ``--methods``} of the ablation {none, TSR, CSA, both} of a Rep-MTL method.

    Args:
        method: Its entry, such as 'rep-mtl-paper' or 'rep-mtl-paper:temperature=0.3'.
    """
    if method in WITH_TERMS:
        return {'none': YARDSTICK, 'TSR': f'{method}-tsr', 'CSA': f'{method}-csa', 'both': method}
    join = ',' if ':' in method else ':'
    return {
        'none': YARDSTICK,
        'TSR': f'{method}{join}lambda_csa=0',
        'CSA': f'{method}{join}lambda_tsr=0',
        'both': method,
    }


def ablation(rows: Sequence[ResultRow], method: str, yardstick: str = YARDSTICK) -> list[Score]:
    """The points of the ablation; raises as :func:`paired_delta_p`."""
    return [
        Score(name, math.nan, paired_delta_p(rows, label, yardstick))
        for name, label in ablation_entries(method).items()
    ]


def sweep(rows: Sequence[ResultRow], method: str, key: str, yardstick: str = YARDSTICK) -> list[Score]:
    """The points of a sweep: the entries of a method that set this key and nothing else, by rising value.

    Args:
        rows: Those of ``results.csv``.
        method: The method, without values.
        key: The parameter, as typed in the entries.
        yardstick: The label of what each is compared with.

    Returns:
        Empty if no entry of the method sets the key.

    Raises:
        ValueError: As :func:`paired_delta_p`; a value that is no number.
    """
    values: dict[str, float] = {}
    for row in rows:
        own = json.loads(row.sweep)
        if row.method == method and row.split == 'test' and list(own) == [key]:
            if isinstance(own[key], bool) or not isinstance(own[key], int | float):
                raise ValueError(f'{row.label}: {key} is {own[key]!r}; only the sweep of a number can be drawn')
            values[row.label] = float(own[key])
    points = [Score(label, x, paired_delta_p(rows, label, yardstick)) for label, x in values.items()]
    return sorted(points, key=lambda point: point.x)


def epoch_times(rows: Iterable[ResultRow], epochs: Mapping[str, int]) -> list[Score]:
    """Training seconds per epoch of each entry, fastest first.

    They contain what a training does: reading the data, validating, saving.

    Args:
        rows: Those of ``results.csv``.
        epochs: {label: epochs of its training}.

    Raises:
        ValueError: No run has a training time.
    """
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if row.seed is not None and row.train_seconds and row.label in epochs:
            found.setdefault(row.label, {})[row.seed] = row.train_seconds / epochs[row.label]
    if not found:
        raise ValueError('the results have no training time of a run that is counted in epochs')
    return sorted((Score(label, math.nan, own) for label, own in found.items()), key=lambda score: score.mean)
