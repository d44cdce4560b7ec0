"""The statistics of a comparison against slow versions of their own, and the words that they carry."""

import itertools
import math
import random

import pytest

from mmrepmtl.comparison.statistics import Estimate, estimate, holm, mean_ranks, paired_differences

ALPHA = 0.05


def t_tail(value: float, freedom: int, steps: int = 200_000) -> float:
    """P(T > value) for value >= 0, by Simpson's rule on the density."""
    scale = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)
    width = value / steps
    inside = sum(
        (1 if i in (0, steps) else 4 if i % 2 else 2) * (1 + (i * width) ** 2 / freedom) ** (-(freedom + 1) / 2)
        for i in range(steps + 1)
    )
    return 0.5 - scale * inside * width / 3


def t_quantile(tail: float, freedom: int) -> float:
    """The value that T exceeds with this probability, by halving."""
    low, high = 0.0, 1000.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, freedom, 2000 + int(200 * middle)) > tail else (low, middle)
    return low


def closed_test(p_values: list[float]) -> list[float]:
    """Holm's adjusted p-values as what they are: the closed test of Bonferroni's, over all subsets."""
    count = len(p_values)
    subsets = [s for size in range(1, count + 1) for s in itertools.combinations(range(count), size)]
    return [max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in subsets if i in s) for i in range(count)]


def draw_deltas(start: int, count: int = 5, seeds: int = 4) -> dict[str, dict[int, float]]:
    draw = random.Random(start)
    return {f'm{i}': {seed: draw.gauss(draw.choice([0, 1, 3]), 0.7) for seed in range(seeds)} for i in range(count)}


def test_an_estimate_has_the_sample_deviation_and_none_for_one_seed():
    found = estimate([1.0, 2.0, 6.0])
    assert found.mean == 3 and found.deviation == pytest.approx(math.sqrt((4 + 1 + 9) / 2)) and found.count == 3
    assert estimate([2.5]) == Estimate(2.5, None, 1)
    with pytest.raises(ValueError, match='no value'):
        estimate([])


@pytest.mark.parametrize('start', range(20))
def test_holm_is_the_closed_test(start):
    draw = random.Random(start)
    p_values = [draw.random() ** 4 for _ in range(6)]
    p_values[1] = p_values[0]
    assert holm(p_values) == pytest.approx(closed_test(p_values))
    assert holm([]) == []


@pytest.mark.parametrize('start', range(4))
def test_differences_are_those_of_a_slow_paired_t_test(start):
    deltas = draw_deltas(start)
    found = paired_differences(deltas, 'm0')
    assert [entry.label for entry in found] == ['m1', 'm2', 'm3', 'm4']
    raw, halves = [], []
    for entry in found:
        values = [deltas[entry.label][seed] - deltas['m0'][seed] for seed in range(4)]
        mean = sum(values) / 4
        error = math.sqrt(sum((v - mean) ** 2 for v in values) / 3 / 4)
        assert entry.mean == pytest.approx(mean) and list(entry.values.values()) == pytest.approx(values)
        raw.append(2 * t_tail(abs(mean) / error, 3))
        halves.append(error)
        half = t_quantile(ALPHA / 2, 3) * error
        assert entry.plain == pytest.approx((mean - half, mean + half), abs=1e-4)
    assert [entry.p for entry in found] == pytest.approx(closed_test(raw), abs=1e-6)
    for entry in found:
        assert entry.clear == (entry.p < ALPHA) and entry.family == 4
        assert entry.interval[0] <= entry.plain[0] + 1e-9 and entry.interval[1] >= entry.plain[1] - 1e-9
    # The smallest p-value is tested at alpha / k.
    first = min(range(4), key=lambda i: raw[i])
    half = t_quantile(ALPHA / 4 / 2, 3) * halves[first]
    assert found[first].interval == pytest.approx((found[first].mean - half, found[first].mean + half), abs=1e-3)


def test_an_interval_excludes_zero_exactly_where_holm_rejects():
    """Also where a later method would pass at a milder level after an earlier one has failed."""
    clear = unclear = 0
    for start in range(300):
        for entry in paired_differences(draw_deltas(start, count=6, seeds=5), 'm0'):
            assert entry.clear == (entry.p < ALPHA)
            clear, unclear = clear + entry.clear, unclear + (not entry.clear)
    assert clear > 20 and unclear > 20


def test_a_stopped_procedure_does_not_go_on_with_milder_levels():
    # p-values near 0.03 and 0.04: the first fails at 0.025, so the second, which would pass at 0.05, is not clear.
    deltas = dict(a={0: 1.0, 1: 1.3, 2: 0.72}, b={0: 1.0, 1: 1.35, 2: 0.7}, r=dict.fromkeys(range(3), 0.0))
    one, two = paired_differences(deltas, 'r')
    raw = [2 * t_tail(abs(e.mean) / (estimate(e.values.values()).deviation / math.sqrt(3)), 2) for e in (one, two)]
    assert 0.025 < min(raw) < max(raw) < 0.05
    assert not one.clear and not two.clear


def test_only_common_seeds_count_and_the_baseline_has_zero():
    deltas = dict(a={0: 1.0, 1: 2.0, 5: 4.0}, r={1: 0.5, 5: 1.0, 7: 9.0})
    (found,) = paired_differences(deltas, 'r')
    assert found.seeds == (1, 5) and found.mean == pytest.approx((1.5 + 3.0) / 2)
    against = paired_differences(deltas, 'stl', baseline=True)
    assert [entry.mean for entry in against] == pytest.approx([7 / 3, 3.5])
    with pytest.raises(ValueError, match="no 'x', only a, r"):
        paired_differences(deltas, 'x')


def test_words_say_no_more_than_the_numbers():
    deltas = dict(
        ref={0: 0.0, 1: 0.1, 2: -0.1},
        good={0: 5.0, 1: 5.2, 2: 4.9},
        bad={0: -5.0, 1: -4.8, 2: -5.1},
        same={0: 0.4, 1: -0.6, 2: 0.3},
        one={0: 9.0},
        none={7: 9.0},
        equal={0: 1.0, 1: 1.1, 2: 0.9},
    )
    words = {entry.label: entry.verdict for entry in paired_differences(deltas, 'ref')}
    assert words['good'].startswith('good against ref: better (Delta p +5.03, 95 % interval +')
    assert "after Holm's correction for 3 methods, 3 seeds" in words['good']
    assert words['bad'].startswith('bad against ref: worse (Delta p -4.97')
    assert words['same'].startswith('same against ref: no clear difference (')
    assert words['one'] == 'one against ref: no statement, Delta p +9.00 comes from one seed, so there is no interval.'
    assert words['none'] == 'none against ref: no statement, there is no seed for which both have a Delta p.'
    assert words['equal'].startswith('equal against ref: no statement, Delta p +1.00 is the same for all 3 seeds')


def test_ranks_are_counted_by_hand_and_shared_by_equals():
    directions = dict(up=True, down=False)
    means = dict(a=dict(up=3.0, down=1.0), b=dict(up=2.0, down=1.0), c=dict(up=1.0, down=2.0), d=dict(up=9.0))

    def slow(label: str, key: str) -> float:
        mine, others = means[label][key], [means[o][key] for o in 'abc' if o != label]
        better = sum((other > mine) if directions[key] else (other < mine) for other in others)
        return 1 + better + sum(other == mine for other in others) / 2

    found = mean_ranks(means, ['up', 'down'], directions)
    assert found == {label: (slow(label, 'up') + slow(label, 'down')) / 2 for label in 'abc'}
    assert found == dict(a=1.25, b=1.75, c=3.0)
    assert mean_ranks({}, ['up'], directions) == {}
