"""Statistics of methods over seeds: means, ranks, paired differences with intervals, and the words that they carry."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from scipy.stats import rankdata, t

ALPHA = 0.05
"""Level of the tests, over all methods of a comparison together."""
LEVEL = 1 - ALPHA
"""Confidence of the intervals, over all methods of a comparison together: with this probability or more all of them
hold their true differences."""


@dataclass(frozen=True)
class Estimate:
    """Mean of a number over seeds; ``deviation`` is the sample standard deviation, None for one seed."""

    mean: float
    deviation: float | None
    count: int


def estimate(values: Iterable[float]) -> Estimate:
    """Mean and sample standard deviation (divisor n - 1).

    Raises:
        ValueError: There is no value.
    """
    values = list(values)
    if not values:
        raise ValueError('estimate: there is no value; give at least one')
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Estimate(mean, None, 1)
    return Estimate(mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)), len(values))


def mean_ranks(
    means: Mapping[str, Mapping[str, float]], keys: Sequence[str], directions: Mapping[str, bool]
) -> dict[str, float]:
    """Mean over metrics of the rank of each method, 1 being the best; methods that are equal share their mean rank.

    Args:
        means: {method: {metric: mean over seeds}}.
        keys: The metrics that count. A method that lacks one of them, or has NaN there, has no rank.
        directions: {metric: whether higher is better}.

    Source: the column MR of Navon et al., "Multi-Task Learning as a Bargaining Game", ICML 2022.
    """
    ranked = [label for label, own in means.items() if all(math.isfinite(own.get(key, math.nan)) for key in keys)]
    if not ranked or not keys:
        return {}
    columns = [
        rankdata([-means[label][key] if directions[key] else means[label][key] for label in ranked]) for key in keys
    ]
    return {label: math.fsum(column[i] for column in columns) / len(keys) for i, label in enumerate(ranked)}


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given.

    Args:
        p_values: One per method.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for position, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - position) * p_values[i]))
        adjusted[i] = largest
    return adjusted


@dataclass(frozen=True)
class Difference:
    """A method's Delta p less that of the reference, paired by seed; positive is better than the reference.

    Attributes:
        label: The method.
        reference: The method that it is compared with.
        seeds: The seeds that both have.
        values: {seed: difference}, in percentage points of Delta p.
        mean: Mean over those seeds; None without a seed in common.
        interval: Simultaneous confidence interval (low, high), by Bonferroni's correction over the family; None where
            no statement can be made.
        plain: The interval of this comparison alone, without a correction.
        p: Holm's adjusted p-value of the paired t test; None where there is no interval.
        family: How many methods the correction is over.
        planned_seeds: How many seeds the comparison has.
        preliminary: Whether runs or numbers of the comparison are missing.
    """

    label: str
    reference: str
    values: Mapping[int, float]
    mean: float | None = None
    interval: tuple[float, float] | None = None
    plain: tuple[float, float] | None = None
    p: float | None = None
    family: int = 0
    planned_seeds: int = 0
    preliminary: bool = False

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that both have."""
        return tuple(self.values)

    @property
    def clear(self) -> bool:
        """Whether Holm's adjusted p-value is below 0.05; the interval, which is wider, may hold 0 then."""
        return self.p is not None and self.p < ALPHA

    @property
    def verdict(self) -> str:
        """One sentence, which claims no more than the numbers carry."""
        against = f'{self.label} against {self.reference}'
        if not self.values:
            return f'{against}: no statement, there is no seed for which both have a Delta p.'
        if self.interval is None or self.mean is None or self.p is None:
            shown = f'Delta p {self.mean:+.2f}'
            if len(self.values) == 1:
                return f'{against}: no statement, {shown} comes from one seed, so there is no interval.'
            return (
                f'{against}: no statement, {shown} is the same for all {len(self.values)} seeds, so nothing is known '
                'about its spread.'
            )
        low, high = self.interval
        count, early = len(self.values), 'preliminary; ' if self.preliminary else ''
        seeds = f'{count} of {self.planned_seeds}' if count < self.planned_seeds else f'{count}'
        methods = f'{self.family} method{"" if self.family == 1 else "s"}'
        numbers = (
            f'{early}Delta p {self.mean:+.2f}, p {_p_text(self.p)} '
            f"after Holm's correction for {methods}, "
            f'{100 * LEVEL:g} % interval {low:+.2f} to {high:+.2f} over all of them together, {seeds} seeds'
        )
        if not self.clear:
            return f'{against}: no clear difference ({numbers}).'
        return f'{against}: {"better" if self.mean > 0 else "worse"} ({numbers}).'


def _p_text(p: float) -> str:
    """Two digits; more where these would stand on the other side of the level."""
    if p < 0.001:
        return '< 0.001'
    texts = [f'{p:.{digits}g}' for digits in (2, 3, 6, 17)]
    return next(text for text in texts if (float(text) < ALPHA) == (p < ALPHA))


def paired_differences(
    deltas: Mapping[str, Mapping[int, float]],
    reference: str,
    baseline: bool = False,
    family: int = 0,
    planned_seeds: int = 0,
    preliminary: bool = False,
) -> list[Difference]:
    """Compares each method with a reference, over the seeds that both have.

    The verdict is that of the paired t test with Holm's correction. The interval is the simultaneous one, at the level
    0.05 / k for k methods (Bonferroni): all k hold together with 95 % or more, which those at Holm's own levels do not.
    So it is a little wider than the verdict, and may hold 0 where Holm's adjusted p-value is below 0.05. Both assume
    that the differences are normally distributed, which few seeds cannot show.

    A method without a p-value, of which runs are missing or all seeds have the same difference, stays in the family as
    one with p = 1. Whatever it turns out to be, no difference that is clear without it ceases to be clear with it.

    Args:
        deltas: {method: {seed: Delta p}}.
        reference: The method to compare with; it is not compared with itself.
        baseline: ``reference`` is what Delta p is measured against, so its own is 0 for every seed.
        family: How many methods are planned to be compared with it, if more than there are now.
        planned_seeds: How many seeds each shall have.
        preliminary: Whether runs or numbers are missing.

    Returns:
        One per method, in the order given.

    Raises:
        ValueError: The reference is not among the methods.

    Source: Holm 1979 (:func:`holm`) for the p-values; Dunn, "Multiple comparisons among means", Journal of the American
    Statistical Association 1961, for the intervals.
    """
    if not baseline and reference not in deltas:
        raise ValueError(f'paired_differences: there is no {reference!r}, only {", ".join(deltas) or "nothing"}')
    found = []
    for label, own in deltas.items():
        if label == reference:
            continue
        other = dict.fromkeys(own, 0.0) if baseline else deltas[reference]
        found.append(Difference(label, reference, {seed: own[seed] - other[seed] for seed in own if seed in other}))
    tests = [_Test(list(entry.values.values())) for entry in found]
    count = max(family, len(found))
    adjusted = holm([1.0 if test.p is None else test.p for test in tests] + [1.0] * (count - len(tests)))
    return [
        replace(
            entry,
            mean=test.mean,
            interval=None if test.p is None else test.interval(ALPHA / count),
            plain=None if test.p is None else test.interval(ALPHA),
            p=None if test.p is None else p,
            family=count,
            planned_seeds=planned_seeds,
            preliminary=preliminary,
        )
        for entry, test, p in zip(found, tests, adjusted, strict=False)
    ]


class _Test:
    """The paired t test of differences against 0; without a p-value where nothing can be said."""

    def __init__(self, values: list[float]) -> None:
        found = estimate(values) if values else None
        self.mean = found.mean if found else None
        self.p: float | None = None
        # Equal differences would make any claim certain; more often they say that a seed changed nothing.
        if found is not None and found.deviation is not None and found.deviation > 1e-12:
            self._centre, self._error = found.mean, found.deviation / math.sqrt(found.count)
            self._freedom = found.count - 1
            self.p = float(2 * t.sf(abs(found.mean) / self._error, self._freedom))

    def interval(self, alpha: float) -> tuple[float, float]:
        half = float(t.isf(alpha / 2, self._freedom)) * self._error
        return self._centre - half, self._centre + half
