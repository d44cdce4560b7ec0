"""Metrics against plain loops over all pixels, and the machinery that adds batches up."""

import logging
import math

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator

from mmrepmtl.evaluation import METRIC_TABLE, StreamingMetric
from mmrepmtl.evaluation.streaming import padding_ranks
from mmrepmtl.registry import METRICS
from mmrepmtl.structures import MultiTaskDataSample

CONFIGS = {
    'semseg': dict(type='SegmentationMetric', task='semseg', num_classes=4),
    'depth': dict(type='DepthMetric', task='depth'),
    'normal': dict(type='NormalMetric', task='normal'),
    'scene': dict(type='ClassificationMetric', task='scene'),
    'pose': dict(type='RegressionMetric', task='pose'),
}


def make_sample(index, size=(5, 7), tasks=CONFIGS):
    """A sample with invalid elements everywhere; some samples have nothing valid at all."""
    generator = torch.Generator().manual_seed(index)

    def rand(*shape):
        return torch.rand(shape, generator=generator)

    unit = torch.nn.functional.normalize
    targets = {
        'semseg': torch.where(rand(*size) < 0.2, 255, (rand(*size) * 3).long()),  # class 3 never occurs
        'depth': torch.where(rand(1, *size) < 0.2, 0.0, 0.5 + 9 * rand(1, *size)),
        'normal': unit(rand(3, *size) - 0.5, dim=0) * (rand(1, *size) > 0.2),
        'scene': (rand(1) * 6).long()[0],
        'pose': torch.where(rand(3) < 0.3, torch.nan, rand(3)),
    }
    predictions = {
        'semseg': (rand(*size) * 3).long(),
        'depth': 0.5 + 9 * rand(1, *size),
        'normal': unit(targets['normal'] + rand(3, *size) - 0.5, dim=0),
        'scene': rand(6),
        'pose': rand(3),
    }
    if index % 5 == 4:
        targets['depth'].zero_()
    sample = MultiTaskDataSample(metainfo=dict(sample_idx=index))
    for task in tasks:
        if (index + list(CONFIGS).index(task)) % 4:  # every task is unlabelled in some samples
            sample.set_target(task, targets[task])
        sample.set_prediction(task, predictions[task])
    return sample


def slow_metrics(samples):
    """The definitions, pixel by pixel."""
    pixels = {task: [] for task in CONFIGS}
    for sample in samples:
        for task, target in sample.targets.items():
            prediction, target = sample.predictions[task].double().numpy(), target.double().numpy()
            if task == 'scene':
                pixels[task].append((int(prediction.argmax()), int(target)))
                continue
            channels = 3 if task == 'normal' else 1
            pixels[task] += zip(
                prediction.reshape(channels, -1).T.tolist(), target.reshape(channels, -1).T.tolist(), strict=True
            )
    semseg = [(p, t) for (p,), (t,) in pixels['semseg'] if t != 255]
    ious = []
    for index in range(4):
        hits = sum(p == t == index for p, t in semseg)
        union = sum(p == index or t == index for p, t in semseg)
        if union:
            ious.append(hits / union)
    depth = [(p, t) for (p,), (t,) in pixels['depth'] if t > 0]
    angles = [
        math.degrees(math.acos(max(-1, min(1, np.dot(p, t) / math.sqrt(np.dot(p, p) * np.dot(t, t))))))
        for p, t in pixels['normal']
        if any(t)
    ]
    pose = [(p, t) for (p,), (t,) in pixels['pose'] if t == t]
    return {
        'semseg/mIoU': 100 * mean(ious),
        'semseg/pixAcc': 100 * mean(p == t for p, t in semseg),
        'depth/abs_err': mean(abs(p - t) for p, t in depth),
        'depth/rel_err': mean(abs(p - t) / t for p, t in depth),
        'depth/rmse': math.sqrt(mean((p - t) ** 2 for p, t in depth)),
        'normal/mean': mean(angles),
        'normal/median': float(np.median(angles)) if angles else math.nan,
        'normal/within_11.25': 100 * mean(a < 11.25 for a in angles),
        'normal/within_22.5': 100 * mean(a < 22.5 for a in angles),
        'normal/within_30': 100 * mean(a < 30 for a in angles),
        'scene/top1': 100 * mean(p == t for p, t in pixels['scene']),
        'pose/mae': mean(abs(p - t) for p, t in pose),
        'pose/rmse': math.sqrt(mean((p - t) ** 2 for p, t in pose)),
    }


def mean(values):
    values = list(values)
    return math.fsum(values) / len(values) if values else math.nan


def tolerance(key):
    """The median comes from a histogram: half a bin. All else is exact in float64."""
    return dict(abs=5.1e-4) if key.endswith('/median') else dict(rel=1e-12, abs=1e-12)


def run(samples, batch_size, configs=CONFIGS):
    evaluator = Evaluator([METRICS.build(config) for config in configs.values()])
    for start in range(0, len(samples), batch_size):
        evaluator.process(samples[start : start + batch_size])
    return evaluator.evaluate(len(samples))


@pytest.fixture(scope='module')
def samples():
    # Images of different sizes, an odd and an even number of them.
    return [make_sample(index, size=(5 + index % 3, 7)) for index in range(23)]


@pytest.mark.parametrize('count', [1, 2, 11, 23])
def test_equals_the_definitions_pixel_by_pixel(samples, count):
    samples = samples[3 : 3 + count]
    expected = slow_metrics(samples)
    assert any(math.isnan(value) for value in expected.values()) == (count < 3)  # those lack depth
    metrics = run(samples, batch_size=4)
    assert metrics.keys() == expected.keys()
    for key in expected:
        assert metrics[key] == pytest.approx(expected[key], nan_ok=True, **tolerance(key)), key


@pytest.mark.parametrize('batch_size', [1, 2, 7, 23])
def test_does_not_depend_on_the_batch_size(samples, batch_size):
    metrics, whole = run(samples, batch_size), run(samples, 5)
    for key, value in whole.items():
        assert metrics[key] == pytest.approx(value, rel=1e-13), key


def test_every_metric_has_a_direction_and_these_names(samples):
    metrics = run(samples, 5)
    for config in CONFIGS.values():
        metric = METRICS.build(config)
        assert {f'{metric.task}/{name}' for name in metric.names} <= metrics.keys()
        assert set(metric.names) <= METRIC_TABLE.keys()


def test_normals_small_and_opposite_angles_are_exact():
    angle = torch.tensor([1e-5, 0.3, 45, 179.99999]).double().deg2rad()
    target = torch.tensor([0.0, 0, 1]).double().view(3, 1, 1).expand(3, 1, 4)
    prediction = 7 * torch.stack([angle.sin(), torch.zeros(4).double(), angle.cos()]).view(3, 1, 4)
    metric = METRICS.build(CONFIGS['normal'])
    for index in range(4):
        metric.process(
            None,
            [
                dict(
                    gt=dict(normal=target[..., index : index + 1]),
                    pred=dict(normal=prediction[..., index : index + 1]),
                    sample_idx=index,
                )
            ],
        )
        assert metric.evaluate(1)['normal/mean'] == pytest.approx(float(angle[index].rad2deg()), abs=1e-9)


def test_a_normal_without_direction_counts_as_90_degrees():
    sample = dict(
        gt=dict(normal=torch.tensor([0.0, 0, 1]).view(3, 1, 1)), pred=dict(normal=torch.zeros(3, 1, 1)), sample_idx=0
    )
    metric = METRICS.build(CONFIGS['normal'])
    metric.process(None, [sample])
    assert metric.evaluate(1)['normal/mean'] == 90


def test_shares_count_angles_below_each_threshold():
    metric = METRICS.build(CONFIGS['normal'])
    totals = metric.statistics([torch.tensor([1.0, 0, 0]).view(3, 1, 1)], [torch.tensor([0.0, 0, 1]).view(3, 1, 1)])
    assert [int(totals[name]) for name in ('within_11.25', 'within_22.5', 'within_30')] == [0, 0, 0]
    half = math.radians(29.9)
    totals = metric.statistics(
        [torch.tensor([math.sin(half), 0, math.cos(half)]).view(3, 1, 1)], [torch.tensor([0.0, 0, 1]).view(3, 1, 1)]
    )
    assert [int(totals[name]) for name in ('within_11.25', 'within_22.5', 'within_30')] == [0, 0, 1]


def test_mean_iou_leaves_out_only_classes_that_occur_nowhere():
    # Class 2 is only predicted (IoU 0), class 3 occurs nowhere.
    sample = dict(
        gt=dict(semseg=torch.tensor([[0, 0, 1, 1, 255]])),
        pred=dict(semseg=torch.tensor([[0, 0, 1, 2, 3]])),
        sample_idx=0,
    )
    metric = METRICS.build(CONFIGS['semseg'])
    metric.process(None, [sample])
    assert metric.evaluate(1) == pytest.approx({'semseg/mIoU': 100 * (1 + 0.5 + 0) / 3, 'semseg/pixAcc': 75})


def test_the_log_shows_each_class():
    # Truth: 3 of 4 pixels are class 0; prediction: 1 of 4.
    sample = dict(
        gt=dict(semseg=torch.tensor([[0, 0, 0, 1]])), pred=dict(semseg=torch.tensor([[0, 1, 1, 1]])), sample_idx=0
    )
    metric = METRICS.build(CONFIGS['semseg'])
    metric.process(None, [sample])
    rows = [line.split() for line in metric.describe(metric._last).splitlines()[2:]]
    assert rows == [['0', '33.33', '75.00'], ['1', '33.33', '25.00'], ['2', 'absent', '0.00'], ['3', 'absent', '0.00']]


def test_depth_valid_range():
    target, prediction = torch.tensor([[[0.0, 1, 2, 10, 11, torch.inf]]]), torch.full((1, 1, 6), 3.0)
    for valid_range, expected in [(None, (2 + 1 + 7 + 8) / 4), ((1, 10), (2 + 1 + 7) / 3), ((1.5, 10), (1 + 7) / 2)]:
        metric = METRICS.build(CONFIGS['depth'] | dict(valid_range=valid_range))
        metric.process(None, [dict(gt=dict(depth=target), pred=dict(depth=prediction), sample_idx=0)])
        assert metric.evaluate(1)['depth/abs_err'] == pytest.approx(expected)
    with pytest.raises(ValueError, match='valid_range'):
        METRICS.build(CONFIGS['depth'] | dict(valid_range=(3, 2)))


def test_target_and_prefix_may_differ_from_the_task():
    metric = METRICS.build(dict(type='DepthMetric', task='aux', target='depth', prefix='val'))
    one = torch.ones(1, 1, 1)
    metric.process(None, [dict(gt=dict(depth=one), pred=dict(aux=3 * one), sample_idx=0)])
    assert metric.evaluate(1) == {'val/abs_err': 2.0, 'val/rel_err': 2.0, 'val/rmse': 2.0}


def test_unlabelled_everywhere_gives_nan_and_says_so(caplog, monkeypatch):
    monkeypatch.setattr(
        'mmrepmtl.evaluation.streaming.print_log',
        lambda message, logger, level=logging.INFO: logging.getLogger('test').log(level, message),
    )
    caplog.set_level(logging.INFO)
    empty = [MultiTaskDataSample(metainfo=dict(sample_idx=index)) for index in range(3)]
    metrics = run(empty, 2)
    assert len(metrics) == 13 and all(math.isnan(value) for value in metrics.values())
    assert "depth: 0 of 3 samples have the target 'depth'" in caplog.text
    caplog.clear()
    void = make_sample(4)  # its depth has no valid pixel
    assert math.isnan(run([void], 1)['depth/abs_err'])
    assert "depth: 1 of 1 samples have the target 'depth', none of them a valid" in caplog.text


def test_the_definition_is_logged_once(caplog, monkeypatch, samples):
    monkeypatch.setattr(
        'mmrepmtl.evaluation.streaming.print_log',
        lambda message, logger, level=logging.INFO: logging.getLogger('test').log(level, message),
    )
    caplog.set_level(logging.INFO)
    evaluator = Evaluator([METRICS.build(config) for config in CONFIGS.values()])
    for _ in range(2):
        evaluator.process(samples)
        evaluator.evaluate(len(samples))
    assert caplog.text.count('histogram with bins of 0.001 degree') == 1
    assert caplog.text.count('one confusion matrix') == 1
    assert caplog.text.count('semseg: per class') == 2


@pytest.mark.parametrize('task', ['depth', 'normal', 'scene', 'pose'])
@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_a_prediction_that_is_not_finite_is_named(task, bad):
    metric = METRICS.build(CONFIGS[task])
    batch = [make_sample(index).to_dict() for index in (5, 6, 7, 8)]
    labelled = next(sample for sample in batch[1:] if task in sample['gt'])
    labelled['pred'][task].flatten()[0] = bad
    with pytest.raises(ValueError, match=f"'{task}', sample {labelled['sample_idx']}: the prediction is not finite"):
        metric.process(None, batch)


def break_sample(sample, change):
    change(sample)
    return sample


@pytest.mark.parametrize(
    ('task', 'change', 'message'),
    [
        ('semseg', lambda s: s['pred'].pop('semseg'), 'without a prediction'),
        ('semseg', lambda s: s['pred'].update(semseg=torch.zeros(2, 2).long()), r'shape \(2, 2\)'),
        ('semseg', lambda s: s['pred'].update(semseg=torch.full((5, 7), 4)), '0 to 3'),
        ('semseg', lambda s: s['gt'].update(semseg=torch.full((5, 7), -1)), '0 to 3'),
        ('semseg', lambda s: s['pred'].update(semseg=torch.zeros(5, 7)), 'integer'),
        ('depth', lambda s: s['pred'].update(depth=torch.ones(5, 7)), r'shape \(5, 7\)'),
        (
            'normal',
            lambda s: (s['pred'].update(normal=torch.ones(5, 7, 3)), s['gt'].update(normal=torch.ones(5, 7, 3))),
            r'\(3, H, W\)',
        ),
        ('scene', lambda s: s['gt'].update(scene=torch.tensor(6)), 'class 6'),
        ('pose', lambda s: s['pred'].update(pose=torch.ones(2)), 'shape'),
        ('pose', lambda s: s.pop('sample_idx'), 'sample_idx'),
    ],
)
def test_wrong_formats_are_named_and_leave_no_trace(task, change, message):
    metric = METRICS.build(CONFIGS[task])
    good = next(sample for sample in map(make_sample, range(20, 28)) if task in sample.targets)
    metric.process(None, [good.to_dict()])
    before = metric.local_metrics()
    broken = make_sample(good.sample_idx + 4).to_dict()
    with pytest.raises(ValueError, match=message):
        metric.process(None, [good.to_dict(), break_sample(broken, change)])
    assert metric.local_metrics() == before and metric.evaluate(1) == before


def test_evaluate_forgets_the_samples_also_after_an_error(samples):
    metric = METRICS.build(CONFIGS['depth'])
    batch = [sample.to_dict() for sample in samples]
    metric.process(None, batch)
    first = metric.evaluate(len(batch))
    metric.process(None, batch)
    assert metric.evaluate(len(batch)) == first
    metric.process(None, batch)
    with pytest.raises(ValueError, match='23 distinct samples were evaluated, but the data set has 24'):
        metric.evaluate(24)
    metric.process(None, batch)
    assert metric.evaluate(len(batch)) == first


def test_a_sample_twice_in_one_process_is_refused(samples):
    metric = METRICS.build(CONFIGS['depth'])
    metric.process(None, [samples[index].to_dict() for index in (0, 1, 2, 1)])
    with pytest.raises(ValueError, match='1 samples were evaluated more than once, e.g. 1'):
        metric.evaluate(4)


def test_joined_data_sets_may_repeat_indices_if_paths_differ(samples):
    metric = METRICS.build(CONFIGS['depth'])
    metric.process(None, [samples[1].to_dict() | dict(img_path=path) for path in ('a.png', 'b.png')])
    assert metric.evaluate(2)['depth/abs_err'] == pytest.approx(slow_metrics(samples[1:2])['depth/abs_err'])


@pytest.mark.parametrize(
    ('ranks', 'padded'),
    [
        ([[0, 2, 4], [1, 3, 0]], {1}),  # five samples, two ranks
        ([[0, 2], [1, 3]], set()),
        ([[0], [0], [0]], {1, 2}),  # one sample, three ranks
        ([[0], [1], [0], [1], [0]], {2, 3, 4}),
        ([[0, 1], []], set()),
        ([[0, 1, 1], [2]], set()),  # no sampler's padding: to be refused
    ],
)
def test_padding_of_samplers(ranks, padded):
    assert padding_ranks([[(index, None) for index in rank] for rank in ranks]) == padded


def test_data_set_meta_is_checked():
    metric = METRICS.build(dict(type='DepthMetric', task='depth', target='dpeth'))
    metric.dataset_meta = dict(targets=dict(depth=dict(kind='depth'), normal=dict(kind='normals')))
    with pytest.raises(ValueError, match="no target 'dpeth', only depth, normal"):
        metric.process(None, [make_sample(1).to_dict()])
    metric.target = 'normal'
    with pytest.raises(ValueError, match="'normal' is of kind 'normals'"):
        metric.process(None, [make_sample(1).to_dict()])


def test_classes_come_from_the_data_set():
    metric = METRICS.build(dict(type='SegmentationMetric', task='semseg'))
    with pytest.raises(ValueError, match='number of classes is unknown'):
        metric.process(None, [make_sample(1).to_dict()])
    metric.dataset_meta = dict(targets=dict(semseg=dict(kind='segmentation', classes=('wall', 'floor', 'bed', 'sky'))))
    metric.process(None, [make_sample(1).to_dict()])
    totals = metric.zeros()
    totals['confusion'] += torch.diag(torch.tensor([3, 1, 0, 0]))
    totals['count'] += 4
    assert 'floor' in metric.describe(totals) and 'absent' in metric.describe(totals)
    other = METRICS.build(dict(type='SegmentationMetric', task='semseg', num_classes=5))
    other.dataset_meta = metric.dataset_meta
    with pytest.raises(ValueError, match='num_classes is 5, but the data set has 4'):
        other.process(None, [make_sample(1).to_dict()])


@pytest.mark.parametrize('task', ['scene', 'pose'])
def test_other_reductions_are_refused(task):
    config = CONFIGS[task]
    with pytest.raises(ValueError, match="reduction='batch' is not available"):
        METRICS.build(config | dict(reduction='batch'))
    assert isinstance(METRICS.build(config | dict(reduction='pixel')), StreamingMetric)


def test_totals_are_small_and_on_the_cpu(samples):
    """State grows by a key per sample only, not by pixels."""
    metric = METRICS.build(CONFIGS['depth'])
    metric.process(None, [sample.to_dict() for sample in samples])
    assert sum(value.numel() for part in (metric._totals, metric._last) for value in part.values()) <= 10
    assert all(
        value.device.type == 'cpu' and value.dtype in (torch.float64, torch.int64) for value in metric._totals.values()
    )
