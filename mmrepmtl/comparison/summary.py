"""Sums up the rows of a comparison: each method's metrics over seeds, Delta p per seed, ranks, what is missing."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mmrepmtl.comparison.results_file import CONSTANT, STL, Row
from mmrepmtl.comparison.statistics import Difference, Estimate, estimate, mean_ranks, paired_differences
from mmrepmtl.evaluation import delta_p
from mmrepmtl.evaluation.metric_table import counts_in_delta_p

BASELINES = (STL, 'ew')
"""The labels that Delta p may be measured against, the better one first."""
REFERENCES = ('ew-log', 'ew')
"""The labels that methods are compared with; with the log first, since Rep-MTL is equal weighting of log losses."""


@dataclass(frozen=True)
class MethodSummary:
    """The numbers of one label.

    Attributes:
        label, method: As in the rows.
        runs: {seed: {metric: value}}; the constants have the seed None.
        metrics: {metric: mean and deviation over the seeds that have a finite number}.
        delta_task, delta_metric: {seed: Delta p in percent}, of the seeds that have one.
        rank: Mean rank over the metrics that count; None for the baselines and where a metric lacks a seed.
        step_seconds, peak_memory_mib, train_seconds: Means over seeds, None if no row says it.
    """

    label: str
    method: str
    runs: Mapping[int | None, Mapping[str, float]]
    metrics: Mapping[str, Estimate]
    delta_task: Mapping[int, float] = field(default_factory=dict)
    delta_metric: Mapping[int, float] = field(default_factory=dict)
    rank: float | None = None
    step_seconds: float | None = None
    peak_memory_mib: float | None = None
    train_seconds: float | None = None

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the finished runs."""
        return tuple(seed for seed in self.runs if seed is not None)

    def delta(self, kind: str = 'task') -> Estimate | None:
        """Delta p over seeds by the definition 'task' or 'metric'; None if no seed has one."""
        values = self.delta_task if kind == 'task' else self.delta_metric
        return estimate(values.values()) if values else None


@dataclass(frozen=True)
class Summary:
    """A comparison in numbers.

    Attributes:
        methods: {label: its summary}: the constants, the single-task baseline, then the others as they were given.
        keys: All metrics, grouped by task.
        counting: Those that count in Delta p and in the mean rank.
        directions: {metric: whether higher is better}.
        baseline: The label that Delta p is measured against, None if there is none.
        seeds: All seeds.
        notes: The runs and numbers that are missing, and why.
        selections: Which checkpoints were tested.
        planned: The multi-task methods that there are or will be.
        preliminary: Whether one of them lacks the Delta p of a seed, or the baseline is not the one that is planned.
    """

    methods: Mapping[str, MethodSummary]
    keys: Sequence[str]
    counting: Sequence[str]
    directions: Mapping[str, bool]
    baseline: str | None
    seeds: Sequence[int]
    notes: Sequence[str]
    selections: Sequence[str] = ()
    planned: Sequence[str] = ()
    preliminary: bool = False

    @property
    def tasks(self) -> dict[str, list[str]]:
        """{task: its metrics}."""
        found: dict[str, list[str]] = {}
        for key in self.keys:
            found.setdefault(key.rpartition('/')[0], []).append(key)
        return found

    @property
    def competitors(self) -> list[str]:
        """The multi-task methods: all labels but the single-task baseline and the constants."""
        return [label for label in self.methods if label not in (STL, CONSTANT)]

    def differences(self, kind: str = 'task') -> dict[str, list[Difference]]:
        """{reference: comparison of all multi-task methods with it}, for the baseline and for equal weighting.

        Args:
            kind: 'task' or 'metric', the definition of Delta p.
        """
        deltas = {
            label: getattr(self.methods[label], f'delta_{kind}') for label in self.competitors if label != self.baseline
        }
        references = [self.baseline] if self.baseline is not None and deltas else []
        references += [reference for reference in REFERENCES if reference in deltas and len(deltas) > 1]
        return {
            reference: paired_differences(
                deltas,
                reference,
                baseline=reference == self.baseline,
                family=len({*self.planned} - {reference, self.baseline}),
                planned_seeds=len(self.seeds),
                preliminary=self.preliminary,
            )
            for reference in references
        }

    def complete(self, value: Estimate | None) -> bool:
        """Whether a number is a mean over all seeds; one that lacks a seed may have lost the worst."""
        return value is not None and value.count >= len(self.seeds)


def summarize(
    rows: Sequence[Row], order: Sequence[str] = (), seeds: Sequence[int] = (), split: str = 'test'
) -> Summary:
    """Sums up the rows of a comparison.

    Args:
        rows: Of ``results.csv``.
        order: Labels in the order in which they were given; by default that of the rows. One without a row is missing,
            and counts among the methods that a difference is corrected for.
        seeds: Seeds that every method should have; by default all that occur.
        split: Whose numbers count.

    Raises:
        ValueError: A label has rows of two configs.
    """
    rows = [row for row in rows if row.split == split]
    _check_one_config(rows)
    runs: dict[str, dict[int | None, dict[str, float]]] = {}
    for row in rows:
        runs.setdefault(row.label, {}).setdefault(row.seed, {})[row.metric] = row.value
    runs = {label: dict(sorted(own.items(), key=_seed_order)) for label, own in runs.items()}
    labels = sorted(runs, key=lambda label: _place(label, [*order, *runs]))
    directions = {row.metric: row.higher_is_better for row in rows}
    keys = _by_task(list(directions))
    baseline = next((label for label in BASELINES if label in runs), None)
    counting = [key for key in keys if counts_in_delta_p(key)]
    expected = sorted({*seeds, *(row.seed for row in rows if row.seed is not None)})
    notes = _missing(runs, order, expected) + _without_numbers(runs)
    methods = {}
    for label in labels:
        deltas: dict[str, dict[int, float]] = dict(task={}, metric={})
        if baseline is not None and label != CONSTANT:
            deltas = _deltas(label, runs[label], baseline, runs[baseline], counting, directions, notes)
        own_rows = [row for row in rows if row.label == label]
        methods[label] = MethodSummary(
            label=label,
            method=own_rows[0].method,
            runs=runs[label],
            metrics=_estimates(runs[label], keys),
            delta_task=deltas['task'],
            delta_metric=deltas['metric'],
            **{name: _mean_of(own_rows, name) for name in ('step_seconds', 'peak_memory_mib', 'train_seconds')},
        )
    if baseline is None and rows:
        notes.append(
            f'Delta p: neither {" nor ".join(BASELINES)} has a finished run, so there is nothing to measure it by'
        )
    methods = _with_ranks(methods, counting, directions, len(expected))
    selections = sorted({row.selection for row in rows if row.label != CONSTANT and row.selection})
    planned = [label for label in dict.fromkeys([*order, *labels]) if label not in (STL, CONSTANT)]
    preliminary = STL in order and baseline != STL
    for label in planned:
        preliminary |= label not in methods or not set(expected) <= set(methods[label].delta_task)
    return Summary(methods, keys, counting, directions, baseline, expected, notes, selections, planned, preliminary)


def _check_one_config(rows: Sequence[Row]) -> None:
    """A mean over runs of two configs is of neither."""
    hashes: dict[str, str] = {}
    for row in rows:
        if row.label != CONSTANT and hashes.setdefault(row.label, row.config_hash) != row.config_hash:
            raise ValueError(
                f'{row.label} has rows of two configs, {hashes[row.label]} and {row.config_hash}: take those of one '
                'out of the results'
            )


def _seed_order(item: tuple[int | None, object]) -> int:
    return -1 if item[0] is None else item[0]


def _place(label: str, order: Sequence[str]) -> tuple[int, int]:
    return {CONSTANT: 0, STL: 1}.get(label, 2), order.index(label)


def _by_task(keys: list[str]) -> list[str]:
    """The metrics of each task beside each other, averages over tasks last."""
    tasks = list(dict.fromkeys(key.rpartition('/')[0] for key in keys))
    tasks.sort(key=lambda task: task == 'avg')
    return [key for task in tasks for key in keys if key.rpartition('/')[0] == task]


def _missing(
    runs: Mapping[str, Mapping[int | None, object]], order: Sequence[str], expected: Sequence[int]
) -> list[str]:
    notes = []
    for label in dict.fromkeys([*order, *runs]):
        if label == CONSTANT:
            continue
        absent = [seed for seed in expected if seed not in runs.get(label, {})]
        if absent or label not in runs:
            which = 'all seeds' if label not in runs else f'seed {", ".join(map(str, absent))}'
            notes.append(f'{label}: no finished run of {which}')
    return notes


def _without_numbers(runs: Mapping[str, Mapping[int | None, Mapping[str, float]]]) -> list[str]:
    notes = []
    for label, own in runs.items():
        for seed, metrics in own.items():
            bad = [key for key, value in metrics.items() if not math.isfinite(value)]
            if bad:
                who = label if seed is None else f'{label}: seed {seed}'
                notes.append(f'{who} has no number for {", ".join(bad)}')
    return notes


def _estimates(runs: Mapping[int | None, Mapping[str, float]], keys: Sequence[str]) -> dict[str, Estimate]:
    found = {}
    for key in keys:
        values = [own[key] for own in runs.values() if math.isfinite(own.get(key, math.nan))]
        if values:
            found[key] = estimate(values)
    return found


def _deltas(
    label: str,
    runs: Mapping[int | None, Mapping[str, float]],
    baseline: str,
    baseline_runs: Mapping[int | None, Mapping[str, float]],
    counting: Sequence[str],
    directions: Mapping[str, bool],
    notes: list[str],
) -> dict[str, dict[int, float]]:
    """Delta p of each seed against the baseline of the same seed; appends to the notes why a seed has none."""
    found: dict[str, dict[int, float]] = dict(task={}, metric={})
    for seed, metrics in runs.items():
        if seed is None:
            continue
        if seed not in baseline_runs:
            notes.append(f'{label}: no Delta p for seed {seed}, of which {baseline} has no finished run')
            continue
        try:
            values = {
                mode: delta_p(metrics, baseline_runs[seed], mode, directions, counting) for mode in ('task', 'metric')
            }
        except ValueError as error:
            # The advice after the semicolon is for callers of delta_p.
            notes.append(f'{label}: no Delta p for seed {seed}: {str(error).partition(";")[0]}')
            continue
        for mode, value in values.items():
            found[mode][seed] = value
    return found


def _mean_of(rows: Sequence[Row], name: str) -> float | None:
    """Mean over seeds of what stands in every row of a run."""
    by_seed = {row.seed: getattr(row, name) for row in rows if getattr(row, name) is not None}
    return estimate(by_seed.values()).mean if by_seed else None


def _with_ranks(
    methods: Mapping[str, MethodSummary], counting: Sequence[str], directions: Mapping[str, bool], seeds: int
) -> dict[str, MethodSummary]:
    means = {
        label: {key: found.mean for key, found in own.metrics.items() if found.count >= seeds}
        for label, own in methods.items()
        if label not in (STL, CONSTANT)
    }
    ranks = mean_ranks(means, counting, directions)
    return {label: replace(own, rank=ranks.get(label)) for label, own in methods.items()}
