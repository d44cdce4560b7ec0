"""The constants are the best ones: no other constant does better on the data they were fitted to."""

import math

import numpy as np
import pytest
import torch

from mmrepmtl.evaluation import comparison_table, evaluate_constants, fit_constants, is_better
from mmrepmtl.evaluation.constant_fitters import FITTERS
from mmrepmtl.evaluation.histograms import PositiveHistogram, SphereHistogram, weighted_median
from mmrepmtl.registry import METRICS
from mmrepmtl.structures import MultiTaskDataSample

SPECS = [
    dict(type='SegmentationMetric', task='semseg', num_classes=5),
    dict(type='DepthMetric', task='depth'),
    dict(type='NormalMetric', task='normal'),
    dict(type='ClassificationMetric', task='scene'),
    dict(type='RegressionMetric', task='pose'),
]


def make_set(size, seed, height=24, width=32):
    """Skewed targets, so that median, weighted median, mean and mode all differ; some invalid, some unlabelled."""
    generator = np.random.default_rng(seed)
    samples = []
    for index in range(size):
        shape = (height, width)
        classes = generator.choice(4, shape, p=[0.2, 0.45, 0.25, 0.1])
        depth = generator.lognormal(0.5, 0.8, (1, *shape)).astype(np.float32)
        # Rooms: a floor, a wall in front and one at the side, with noise.
        walls = np.array([[0.0, 0.1, 1.0], [0.1, -1.0, 0.2], [0.8, -0.6, 0.0]])
        normal = walls[generator.choice(3, shape, p=[0.3, 0.3, 0.4])] + 0.3 * generator.standard_normal((*shape, 3))
        normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
        pose = generator.exponential(2, 3) * [1, -1, 5]
        pose[generator.random(3) < 0.2] = np.nan
        targets = {
            'semseg': torch.from_numpy(np.where(generator.random(shape) < 0.1, 255, classes)),
            'depth': torch.from_numpy(np.where(generator.random(shape) < 0.1, 0, depth).astype(np.float32)),
            'normal': torch.from_numpy((normal * (generator.random((*shape, 1)) > 0.1)).transpose(2, 0, 1)).float(),
            'scene': torch.tensor(int(generator.choice([2, 2, 2, 0, 1, 7]))),
            'pose': torch.from_numpy(pose).float(),
        }
        sample = MultiTaskDataSample(metainfo=dict(sample_idx=index))
        for number, (task, target) in enumerate(targets.items()):
            if (index + number) % 5:
                sample.set_target(task, target)
        samples.append(sample)
    return samples


def value_of(samples, spec, name, constant):
    metric = METRICS.build(spec)
    for index, sample in enumerate(samples):
        target = sample.targets.get(metric.target)
        if target is not None:
            prediction = FITTERS[metric.kind].predict(constant, target)
            metric.process(None, [dict(gt={metric.target: target}, pred={metric.task: prediction}, sample_idx=index)])
    return metric.local_metrics()[f'{metric.task}/{name}']


@pytest.fixture(scope='module')
def train():
    return make_set(12, seed=0)


@pytest.fixture(scope='module')
def constants(train):
    return fit_constants(train, SPECS, progress=False)


@pytest.fixture(scope='module')
def values(train, constants):
    return evaluate_constants(train, SPECS, constants, progress=False)


def test_each_value_is_the_metric_of_its_own_constant(train, constants, values):
    for spec in SPECS:
        for name in METRICS.build(spec).names:
            key = f'{spec["task"]}/{name}'
            assert values[key] == value_of(train, spec, name, constants[key]), key


@pytest.mark.parametrize('name', ['mIoU', 'pixAcc'])
def test_no_other_class_is_better(train, values, name):
    for other in range(5):
        assert not is_better(f'semseg/{name}', value_of(train, SPECS[0], name, other), values[f'semseg/{name}'])


@pytest.mark.parametrize('name', ['abs_err', 'rel_err', 'rmse'])
def test_no_other_depth_is_better(train, values, name):
    depths = np.concatenate([sample.depth[sample.depth > 0].numpy() for sample in map(targets_of('depth'), train)])
    errors = {
        'abs_err': lambda c: np.abs(depths - c).mean(),
        'rel_err': lambda c: (np.abs(depths - c) / depths).mean(),
        'rmse': lambda c: np.sqrt(((depths - c) ** 2).mean()),
    }
    depths = depths.astype(np.float64)
    candidates = np.concatenate([np.quantile(depths, np.linspace(0, 1, 2001)), np.linspace(0.05, 12, 2000)])
    best = min(errors[name](candidate) for candidate in candidates)
    assert values[f'depth/{name}'] <= best * (1 + 1e-7)


def targets_of(task):
    class Holder:
        def __init__(self, sample):
            target = sample.targets.get(task)
            setattr(self, task, torch.empty(0) if target is None else target)

    return Holder


def test_the_three_depths_differ(constants):
    assert constants['depth/rel_err'] < 0.9 * constants['depth/abs_err'] < 0.81 * constants['depth/rmse']


@pytest.mark.parametrize('name', ['mean', 'median', 'within_11.25', 'within_22.5', 'within_30'])
def test_no_other_direction_is_better(train, constants, values, name):
    normals = np.concatenate(
        [
            sample.normal[:, (sample.normal != 0).any(0)].numpy().T.astype(np.float64)
            for sample in map(targets_of('normal'), train)
            if sample.normal.numel()
        ]
    )
    generator = np.random.default_rng(1)
    anywhere = generator.standard_normal((3000, 3))
    # And close to the constant itself, where a search that stops early would be beaten.
    around = np.array(constants[f'normal/{name}']) + generator.standard_normal((2000, 3)) * generator.choice(
        [0.003, 0.01, 0.05], (2000, 1)
    )
    candidates = np.concatenate([anywhere, around])
    candidates /= np.linalg.norm(candidates, axis=1, keepdims=True)
    best = None
    for chunk in np.array_split(candidates, 50):
        angles = np.degrees(np.arccos(np.clip(chunk @ normals.T, -1, 1)))
        scores = {
            'mean': lambda angles=angles: angles.mean(1).min(),
            'median': lambda angles=angles: np.median(angles, axis=1).min(),
        }.get(name, lambda angles=angles: 100 * (angles < float(name[7:])).mean(1).max())()
        best = scores if best is None else (min if name in ('mean', 'median') else max)(best, scores)
    # Degrees, or percent: 7000 pixels are a rough sample, on which shares jump from pixel to pixel.
    margin = {'mean': 1e-3, 'median': 0.03}.get(name, 0.15)
    assert (
        values[f'normal/{name}'] <= best + margin
        if name in ('mean', 'median')
        else values[f'normal/{name}'] >= best - margin
    )


def test_no_other_scene_is_better(train, values):
    for other in range(9):
        assert value_of(train, SPECS[3], 'top1', other) <= values['scene/top1']


@pytest.mark.parametrize('name', ['mae', 'rmse'])
def test_no_other_pose_is_better(train, constants, values, name):
    generator = np.random.default_rng(2)
    for scale in (0.01, 0.1, 1):
        for _ in range(30):
            other = (np.array(constants[f'pose/{name}']) + scale * generator.standard_normal(3)).tolist()
            assert value_of(train, SPECS[4], name, other) >= values[f'pose/{name}'] - 1e-12


def test_weighted_median_minimises_the_weighted_distance():
    generator = np.random.default_rng(3)
    for _ in range(50):
        values, weights = np.sort(generator.random(9)), generator.integers(0, 4, 9) + 0.01
        best = weighted_median(values, weights)
        assert weights @ np.abs(values - best) <= min(weights @ np.abs(values - other) for other in values) + 1e-12


@pytest.mark.parametrize('scale', [1e-6, 1, 1e5])
def test_histogram_of_any_unit(scale):
    values = (np.random.default_rng(4).lognormal(0, 2, 5001) * scale).astype(np.float32)
    histogram = PositiveHistogram()
    for part in np.array_split(values, 7):
        histogram.add(part)
    points, counts = histogram.points()
    assert counts.sum() == 5001 and (np.diff(points) > 0).all()
    assert points @ counts == pytest.approx(values.astype(np.float64).sum(), rel=1e-12)
    assert weighted_median(points, counts) == pytest.approx(np.median(values), rel=1.3e-4)


def test_directions_stay_in_their_place():
    vectors = np.random.default_rng(5).standard_normal((3, 2000))
    vectors /= np.linalg.norm(vectors, axis=0)
    histogram = SphereHistogram(resolution=512)
    histogram.add(5 * vectors)
    points, counts = histogram.points()
    assert counts.sum() == 2000
    nearest = (vectors.T @ points).max(1)
    assert np.degrees(np.arccos(np.clip(nearest, -1, 1))).max() < 0.5
    coarse, coarse_counts = histogram.points(64)
    assert coarse_counts.sum() == 2000 and coarse.shape[1] < points.shape[1]
    assert np.degrees(np.arccos(np.clip((vectors.T @ coarse).max(1), -1, 1))).max() < 4


def test_fitted_on_one_set_and_evaluated_on_another(constants):
    test = make_set(6, seed=9, height=10, width=12)
    values = evaluate_constants(test, SPECS, constants, progress=False)
    depths = np.concatenate([sample.depth[sample.depth > 0].numpy() for sample in map(targets_of('depth'), test)])
    assert values['depth/abs_err'] == pytest.approx(np.abs(depths - constants['depth/abs_err']).mean(), rel=1e-5)
    assert values.keys() == constants.keys()


def test_valid_range_and_other_names(train):
    spec = [dict(type='DepthMetric', task='d', target='depth', prefix='near', valid_range=(1, 2))]
    constants = fit_constants(train, spec, progress=False)
    assert list(constants) == ['near/abs_err', 'near/rel_err', 'near/rmse']
    assert all(1 < constant < 2 for constant in constants.values())
    assert evaluate_constants(train, spec, constants, progress=False)['near/abs_err'] < 0.5


def test_kinds_of_input_agree(train, constants):
    packed = [dict(inputs=None, data_samples=sample) for sample in train]
    batches = (dict(data_samples=train[start : start + 5]) for start in range(0, len(train), 5))
    built = [METRICS.build(spec) for spec in SPECS]
    assert fit_constants(packed, SPECS, progress=False) == constants
    assert fit_constants(batches, built, progress=False) == constants
    with pytest.raises(ValueError, match='items must be packed'):
        fit_constants([dict(gt={})], SPECS, progress=False)


def test_max_samples_are_spread_over_a_data_set_and_the_first_of_an_iterable(train):
    poses = [MultiTaskDataSample(metainfo=dict(sample_idx=i)) for i in range(10)]
    for index, sample in enumerate(poses):
        sample.set_target('pose', torch.tensor([float(index)]))
    for source, expected in [(poses, (0 + 2 + 4 + 6 + 8) / 5), (iter(poses), 2)]:
        constants = fit_constants(source, SPECS[4], max_samples=5, progress=False)
        assert constants['pose/rmse'] == [expected]
    with pytest.raises(ValueError, match='max_samples'):
        fit_constants(train, SPECS, max_samples=0, progress=False)


def test_progress_and_metainfo(train, capsys):
    class WithMeta(list):
        metainfo = dict(targets=dict(semseg=dict(kind='segmentation', classes='abcde')))

    constants = fit_constants(WithMeta(train), dict(type='SegmentationMetric', task='semseg'))
    assert constants == {'semseg/mIoU': 1, 'semseg/pixAcc': 1}
    assert 'fit 12 of 12 (100 %)' in capsys.readouterr().out
    with pytest.raises(ValueError, match="no target 'depth'"):
        fit_constants(WithMeta(train), SPECS[1], progress=False)


def test_errors_name_what_is_missing(train, constants):
    with pytest.raises(ValueError, match="no constant fits task 'pose'"):
        fit_constants([MultiTaskDataSample(metainfo=dict(sample_idx=0))], SPECS[4], progress=False)
    with pytest.raises(ValueError, match="no constant for 'depth/abs_err'"):
        evaluate_constants(train, SPECS[1], {}, progress=False)
    unlabelled = [MultiTaskDataSample(metainfo=dict(sample_idx=0))]
    values = evaluate_constants(unlabelled, SPECS, constants, progress=False)
    assert all(math.isnan(value) for value in values.values())


def test_comparison_table():
    table = comparison_table(
        {'a/mIoU': 12.0, 'a/new': 1.0, 'b/mean': 20.0, 'b/median': math.nan},
        {'a/mIoU': 10.0, 'b/mean': 12.5, 'b/median': 11.0},
        directions={'new': True},
    )
    assert [line.split() for line in table.splitlines()] == [
        ['metric', 'model', 'best', 'constant', 'better?'],
        ['a/mIoU', '↑', '12.00', '10.00', 'yes'],
        ['a/new', '↑', '1.0000', '-', '-'],
        ['b/mean', '↓', '20.00', '12.50', 'no'],
        ['b/median', '↓', 'nan', '11.00', 'no'],
    ]
    assert comparison_table({'d/abs_err': 0.5}, {'d/abs_err': 0.6}).splitlines()[1].endswith('yes')
