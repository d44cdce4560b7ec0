"""odsF against slow versions written from the definitions: thinning, correspondence and counts."""

import itertools
import logging
import math

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from mmrepmtl.evaluation import METRIC_TABLE, EdgeMetric, evaluate_constants, fit_constants, higher_is_better
from mmrepmtl.evaluation.boundaries import count_matches
from mmrepmtl.registry import METRICS
from mmrepmtl.structures import MultiTaskDataSample
from mmrepmtl.utils.morphology import thin
from tests.evaluation.harness import slow_thin

CONFIG = dict(type='EdgeMetric', task='edge', thresholds=7, max_distance=0.12)


def slow_count(predicted, true, limit):
    """The largest matching by augmenting paths, from distances between all pairs."""
    ones, others = np.argwhere(predicted), np.argwhere(true)
    partners = [[j for j, q in enumerate(others) if np.hypot(*(p - q)) <= limit] for p in ones]
    owner = {}

    def find(i, tried):
        for j in partners[i]:
            if j not in tried:
                tried.add(j)
                if j not in owner or find(owner[j], tried):
                    owner[j] = i
                    return True
        return False

    return sum(find(i, set()) for i in range(len(ones)))


def brute_count(predicted, true, limit):
    """The largest matching by trying all ways; for a handful of pixels."""
    ones, others = np.argwhere(predicted), np.argwhere(true)
    if len(ones) > len(others):
        ones, others = others, ones
    best = 0
    for chosen in itertools.permutations(others, len(ones)):
        best = max(best, sum(np.hypot(*(p - q)) <= limit for p, q in zip(ones, chosen, strict=True)))
    return best


def official_count(predicted, true, limit):
    """Pairs in the assignment that minimises distances plus 100 limits per pixel without partner, exactly."""
    ones, others = np.argwhere(predicted), np.argwhere(true)
    size, other_size = len(ones), len(others)
    rows, columns, costs = [], [], []
    for i, p in enumerate(ones):
        for j, q in enumerate(others):
            if np.hypot(*(p - q)) <= limit:
                rows, columns, costs = rows + [i], columns + [j], costs + [np.hypot(*(p - q)) + 1e-6]
    for i in range(size):  # a stand-in for having no partner; its twin below frees the true pixel
        rows, columns, costs = rows + [i], columns + [other_size + i], costs + [100 * limit]
    for j in range(other_size):
        rows, columns, costs = rows + [size + j], columns + [j], costs + [100 * limit]
        for i in range(size):
            rows, columns, costs = rows + [size + j], columns + [other_size + i], costs + [1e-6]
    graph = csr_matrix((costs, (rows, columns)), shape=(size + other_size,) * 2)
    left, right = min_weight_full_bipartite_matching(graph)
    return int(((left < size) & (right < other_size)).sum())


def make_sample(index, size=(14, 17), void=True):
    """Two lines as the truth, a noisy and shifted blur of them as the prediction."""
    generator = np.random.default_rng(index)
    true = np.zeros(size, bool)
    true[generator.integers(2, size[0] - 2), 1:-1] = True
    true[2:-2, generator.integers(2, size[1] - 2)] = True
    true = slow_thin(true)
    distance = np.min([np.hypot(*np.ogrid[-y : size[0] - y, -x : size[1] - x]) for y, x in np.argwhere(true)], axis=0)
    probability = np.clip(np.exp(-np.roll(distance, 1, axis=1) / 2) + 0.2 * generator.standard_normal(size), 0, 1)
    target = true.astype(np.int64)
    if void:
        target[:2, :5] = 255
    sample = MultiTaskDataSample(metainfo=dict(sample_idx=index))
    if index % 4 != 3:
        sample.set_target('edge', torch.from_numpy(target))
    sample.set_prediction('edge', torch.from_numpy(probability).float())
    return sample


def slow_ods(samples, thresholds, max_distance):
    best = 0.0
    for k in range(1, thresholds + 1):
        matched = predicted = true = 0
        for sample in samples:
            if 'edge' not in sample.targets:
                continue
            target = sample.targets['edge'].numpy()
            above = (sample.predictions['edge'].double().numpy() >= k / (thresholds + 1)) & (target != 255)
            lines = slow_thin(above)
            matched += slow_count(lines, target == 1, max_distance * math.hypot(*target.shape))
            predicted += lines.sum()
            true += (target == 1).sum()
        precision, recall = matched / max(predicted, 1), matched / true
        best = max(best, 2 * precision * recall / (precision + recall) if matched else 0)
    return 100 * best


def run(samples, batch_size=3, **arguments):
    metric = METRICS.build(CONFIG | arguments)
    for start in range(0, len(samples), batch_size):
        metric.process(None, [sample.to_dict() for sample in samples[start : start + batch_size]])
    return metric.evaluate(len(samples))


def masks(seed, count, share, size=(9, 11)):
    generator = np.random.default_rng(seed)
    return [generator.random(size) < share for _ in range(count)]


@pytest.mark.parametrize('share', [0.3, 0.6, 0.85, 1.0])
def test_thinning_equals_the_conditions_pixel_by_pixel(share):
    for mask in masks(1, 12, share):
        assert np.array_equal(thin(mask), slow_thin(mask))


def test_thinning_leaves_lines_keeps_parts_and_closed_curves():
    line = np.eye(8, dtype=bool)
    assert np.array_equal(thin(line), line)
    thick = np.zeros((9, 20), bool)
    thick[3:6, 2:18] = True
    thinned = thin(thick)
    assert thinned.sum(0).max() == 1 and np.flatnonzero(thinned.any(0)).size >= 13 and thinned[4].any()
    ring = np.hypot(*np.ogrid[-8:9, -8:9])
    ring = (ring < 7) & (ring > 3)
    thinned = thin(ring)
    assert not thinned[8, 8] and 15 < thinned.sum() < 45
    # Still closed: every pixel of the curve has two neighbours or more.
    around = sum(np.roll(thinned, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx)
    assert around[thinned].min() >= 2


def test_a_few_pixels_are_paired_as_well_as_any_way_of_pairing():
    for seed in range(40):
        predicted, true = masks(seed, 2, 0.16, size=(5, 6))
        if min(predicted.sum(), true.sum()) <= 5 and max(predicted.sum(), true.sum()) <= 8:
            for limit in (0.9, 1.0, 1.5, 2.3):
                assert count_matches(predicted, true, limit) == brute_count(predicted, true, limit)


@pytest.mark.parametrize('limit', [1, 2.2, 4.6875])
def test_counts_are_the_largest_and_those_of_the_official_assignment(limit):
    for seed in range(4):
        predicted, true = (thin(mask) for mask in masks(seed, 2, 0.5, size=(16, 18)))
        count = count_matches(predicted, true, limit)
        assert count == slow_count(predicted, true, limit) == official_count(predicted, true, limit)


def test_one_true_pixel_serves_one_predicted_pixel():
    predicted, true = np.zeros((2, 5, 7), bool)
    predicted[2, 1:6] = True
    true[2, 3] = True
    assert count_matches(predicted, true, 3) == 1
    # A greedy choice of the nearest would leave one of these without partner.
    predicted[:], true[:] = False, False
    predicted[2, [2, 3]] = True
    true[2, [3, 5]] = True
    assert count_matches(predicted, true, 2) == 2
    assert count_matches(predicted, np.zeros_like(true), 2) == count_matches(np.zeros_like(true), true, 2) == 0


def test_the_limit_is_included():
    predicted, true = np.zeros((2, 6, 6), bool)
    predicted[0, 0] = true[3, 4] = True
    assert count_matches(predicted, true, 5.0) == 1 and count_matches(predicted, true, 4.999) == 0


@pytest.mark.parametrize('batch_size', [1, 3, 8])
def test_equals_the_definition(batch_size):
    samples = [make_sample(index, size=(12 + index % 3, 17)) for index in range(6)]
    expected = slow_ods(samples, 7, 0.12)
    assert 30 < expected < 95
    assert run(samples, batch_size) == {'edge/odsF': pytest.approx(expected, rel=1e-12)}


def test_a_perfect_map_has_100_and_a_map_without_edges_0():
    sample = make_sample(0, void=False)
    sample.set_prediction('edge', sample.targets['edge'].double())
    assert run([sample])['edge/odsF'] == 100
    sample.set_prediction('edge', torch.zeros(14, 17))
    assert run([sample])['edge/odsF'] == 0


def test_the_counts_are_those_of_the_set_not_means_over_images():
    """One image with many, one with few boundaries: a mean of their F would be another number."""
    many, few = make_sample(0, void=False), make_sample(1, void=False)
    many.set_prediction('edge', many.targets['edge'].double())
    few.set_prediction('edge', torch.zeros(14, 17))
    true = int(many.targets['edge'].sum()), int(few.targets['edge'].sum())
    expected = 100 * 2 * true[0] / (true[0] + sum(true))
    assert run([many, few])['edge/odsF'] == pytest.approx(expected)


def test_void_pixels_are_neither_predicted_nor_true():
    target = torch.zeros(14, 17, dtype=torch.int64)
    target[6, 1:-1] = 1
    # Wrong there, but it does not count.
    target[:, 12:] = 255
    probability = (target == 1).double()
    probability[3:10, 13:15] = 1
    sample = MultiTaskDataSample(metainfo=dict(sample_idx=0))
    sample.set_target('edge', target)
    sample.set_prediction('edge', probability)
    assert run([sample])['edge/odsF'] == 100


def test_the_distance_is_a_share_of_the_diagonal():
    target = torch.zeros(30, 40, dtype=torch.int64)
    target[15, 5:35] = 1
    for shift, expected in [(2, 100), (3, 0)]:  # 0.05 of 50 are 2.5 pixels
        sample = MultiTaskDataSample(metainfo=dict(sample_idx=0))
        sample.set_target('edge', target)
        sample.set_prediction('edge', target.roll(shift, 0).double())
        assert run([sample], max_distance=0.05)['edge/odsF'] == expected


def test_a_set_without_boundaries_has_no_value():
    sample = make_sample(0)
    sample.set_target('edge', torch.zeros(14, 17, dtype=torch.int64))
    assert math.isnan(run([sample])['edge/odsF'])


def test_the_log_says_how_many_thresholds(caplog, monkeypatch):
    monkeypatch.setattr(
        'mmrepmtl.evaluation.streaming.print_log',
        lambda message, logger, level=logging.INFO: logging.getLogger('test').log(level, message),
    )
    caplog.set_level(logging.INFO)
    run([make_sample(0)], thresholds=11)
    assert 'over 11 thresholds' in caplog.text and '0.12 of the diagonal' in caplog.text
    assert 'odsF at threshold' in caplog.text and higher_is_better('edge/odsF') and METRIC_TABLE['odsF'].in_delta_p


def test_no_constant_is_better_than_the_baseline():
    samples = [make_sample(index) for index in range(3)]
    constants = fit_constants(samples, CONFIG, progress=False)
    value = evaluate_constants(samples, CONFIG, constants, progress=False)['edge/odsF']
    for constant in (0.0, 0.3, 0.99):
        for sample in samples:
            sample.set_prediction('edge', torch.full((14, 17), constant))
        assert run(samples)['edge/odsF'] <= value


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(target=torch.full((14, 17), 2)), 'labels from 2 to 2'),
        (dict(target=torch.zeros(14, 17)), r'integers, not \(14, 17\) torch.float32'),
        (dict(prediction=torch.zeros(14, 17).long()), 'probabilities'),
        (dict(prediction=torch.full((14, 17), 1.5)), 'from 1.5 to 1.5'),
        (dict(prediction=torch.zeros(13, 17)), r'\(13, 17\)'),
    ],
)
def test_wrong_formats_are_named(change, message):
    sample = make_sample(0)
    for what, value in change.items():
        getattr(sample, f'set_{what}')('edge', value)
    with pytest.raises(ValueError, match=f"'edge', sample 0: .*{message}"):
        run([sample])


@pytest.mark.parametrize('arguments', [dict(thresholds=0), dict(max_distance=0), dict(max_distance=2)])
def test_impossible_settings_are_named(arguments):
    with pytest.raises(ValueError, match=f"EdgeMetric of 'edge': {next(iter(arguments))}"):
        EdgeMetric('edge', **arguments)
