"""The statistics of a comparison against slow versions of their own, and the words that they carry."""

import itertools
import math
import random
import re

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


def draw_apart(start: int, count: int) -> dict[str, dict[int, float]]:
    """Methods that differ by some of their deviations, so that some differences are clear and some are not."""
    draw = random.Random(start)
    means = {f'm{i}': draw.choice([0, 1, 3]) for i in range(count)}
    return {label: {seed: draw.gauss(mean, 0.5) for seed in range(5)} for label, mean in means.items()}


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
    for entry, error in zip(found, halves, strict=True):
        assert entry.clear == (entry.p < ALPHA) and entry.family == 4
        half = t_quantile(ALPHA / 4 / 2, 3) * error
        assert entry.interval == pytest.approx((entry.mean - half, entry.mean + half), abs=1e-3)


def test_the_verdict_is_that_of_holm_and_never_milder_than_the_interval():
    clear = between = 0
    for start in range(300):
        for entry in paired_differences(draw_apart(start, count=6), 'm0'):
            outside = entry.interval[0] > 0 or entry.interval[1] < 0
            assert entry.clear == (entry.p < ALPHA) and entry.clear >= outside
            word = 'better' if entry.mean > 0 else 'worse'
            assert entry.verdict.partition(': ')[2].startswith(word if entry.clear else 'no clear difference')
            clear, between = clear + entry.clear, between + (entry.clear and not outside)
    assert clear > 20 and between > 5


def test_all_intervals_hold_together_though_all_effects_are_clear():
    """Intervals at the levels of Holm's procedure hold together in 91 % of such cases."""
    draw, together, cases = random.Random(3), 0, 800
    truth = {f'm{i}': 1000.0 * (i + 1) for i in range(11)}
    for _ in range(cases):
        deltas = {label: {seed: draw.gauss(mean, 1) for seed in range(3)} for label, mean in truth.items()}
        found = paired_differences(deltas, 'stl', baseline=True)
        assert all(entry.clear for entry in found)
        together += all(entry.interval[0] <= truth[entry.label] <= entry.interval[1] for entry in found)
    assert together / cases > 0.94


def test_a_verdict_is_not_taken_back_by_methods_that_are_still_to_come():
    kept = 0
    for start in range(200):
        deltas = draw_apart(start, count=7)
        early = {label: deltas[label] for label in ('m0', 'm1', 'm2', 'm3')}
        first = {entry.label: entry for entry in paired_differences(early, 'm0', family=6)}
        last = {entry.label: entry for entry in paired_differences(deltas, 'm0', family=6)}
        for label, entry in first.items():
            assert entry.family == 6 and entry.interval == last[label].interval
            assert last[label].clear >= entry.clear
            kept += entry.clear
    assert kept > 20


def test_a_method_without_a_spread_stays_in_the_family():
    deltas = dict(a={0: 1.0, 1: 1.1, 2: 0.95}, same=dict.fromkeys(range(3), 2.0), one={0: 1.0}, later={})
    alone, *_ = paired_differences(dict(a=deltas['a']), 'stl', baseline=True)
    beside, same, one, later = paired_differences(deltas, 'stl', baseline=True)
    assert beside.family == 4 and beside.p == pytest.approx(4 * alone.p) and same.p is one.p is later.p is None


def test_a_rounded_p_stands_on_its_side_of_the_level():
    # Two seeds: p is known in closed form, as T is Cauchy's.
    for target in (0.0496, 0.049999, 0.0504):
        ratio = 1 / math.tan(math.pi * target / 2)
        (found,) = paired_differences({'a': {0: ratio + 1, 1: ratio - 1}}, 'stl', baseline=True)
        shown = re.search(r'p ([\d.]+) after', found.verdict).group(1)
        assert found.p == pytest.approx(target, abs=1e-9) and (float(shown) < 0.05) == (target < 0.05)


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
    assert words['good'].startswith('good against ref: better (Delta p +5.03, p < 0.001 after Holm')
    assert " after Holm's correction for 6 methods, 95 % interval +" in words['good']
    assert words['good'].endswith('over all of them together, 3 seeds).')
    assert words['bad'].startswith('bad against ref: worse (Delta p -4.97')
    assert words['same'].startswith('same against ref: no clear difference (')
    assert words['one'] == 'one against ref: no statement, Delta p +9.00 comes from one seed, so there is no interval.'
    assert words['none'] == 'none against ref: no statement, there is no seed for which both have a Delta p.'
    assert words['equal'].startswith('equal against ref: no statement, Delta p +1.00 is the same for all 3 seeds')


def test_words_say_what_is_still_to_come():
    deltas = dict(ref=dict.fromkeys(range(2), 0.0), good={0: 5.0, 1: 5.0001})
    (found,) = paired_differences(deltas, 'ref', planned_seeds=3, preliminary=True)
    assert found.verdict.startswith('good against ref: better (preliminary; Delta p +5.00, p < 0.001 after')
    assert found.verdict.endswith(', 2 of 3 seeds).') and 'correction for 1 method, 95 %' in found.verdict


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
