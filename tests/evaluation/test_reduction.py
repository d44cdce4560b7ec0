"""reduction='batch': means over batches of each batch's value, against loops; and what it must refuse."""

import logging
import math

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator

from mmrepmtl.evaluation import evaluate_constants, fit_constants
from mmrepmtl.registry import METRICS
from mmrepmtl.structures import MultiTaskDataSample
from tests.distributed.launch import run_processes

CONFIGS = [
    dict(type='SegmentationMetric', task='semseg', num_classes=4, reduction='batch'),
    dict(type='DepthMetric', task='depth', reduction='batch'),
    dict(type='NormalMetric', task='normal', reduction='batch'),
]
SIZE = (5, 7)


def make_sample(index):
    """Errors grow with the index; each task is unlabelled in some samples and void in others."""
    generator = torch.Generator().manual_seed(index)

    def rand(*shape):
        return torch.rand(shape, generator=generator)

    unit = torch.nn.functional.normalize
    semseg = torch.where(rand(*SIZE) < 0.2, 255, (rand(*SIZE) * 3).long())
    depth = torch.where(rand(1, *SIZE) < 0.2 + 0.1 * (index % 6), 0.0, 0.5 + 5 * rand(1, *SIZE))
    normal = unit(rand(3, *SIZE) - 0.5, dim=0) * (rand(1, *SIZE) > 0.2)
    values = {
        'semseg': (semseg, torch.where(rand(*SIZE) < 0.1 * (index % 7), (rand(*SIZE) * 4).long(), semseg % 255)),
        'depth': (depth, depth + 0.2 * (index % 5) * rand(1, *SIZE) + 0.1),
        'normal': (normal, unit(normal + 0.2 * (index % 5) * (rand(3, *SIZE) - 0.5) + 1e-3, dim=0)),
    }
    sample = MultiTaskDataSample(metainfo=dict(sample_idx=index))
    for number, (task, (target, prediction)) in enumerate(values.items()):
        if index % 9 == 8:
            target = torch.full_like(target, 255 if task == 'semseg' else 0)
        if (index + number) % 4:
            sample.set_target(task, target)
        sample.set_prediction(task, prediction)
    return sample


def image_values(target, prediction):
    """mIoU and pixel accuracy of one image."""
    pairs = [(t, p) for t, p in zip(target.flatten().tolist(), prediction.flatten().tolist(), strict=True) if t != 255]
    ious = []
    for index in range(4):
        union = sum(index in pair for pair in pairs)
        if union:
            ious.append(sum(t == p == index for t, p in pairs) / union)
    return 100 * np.mean(ious), 100 * np.mean([t == p for t, p in pairs])


def slow_batch(samples):
    """{metric: value} of one batch; a metric that has no valid element is left out."""
    labelled = {task: [s for s in samples if task in s.targets] for task in ('semseg', 'depth', 'normal')}
    values = {}
    images = [
        image_values(s.targets['semseg'], s.predictions['semseg'])
        for s in labelled['semseg']
        if (s.targets['semseg'] != 255).any()
    ]
    if images:
        values['semseg/mIoU'], values['semseg/pixAcc'] = np.mean(images, axis=0)
    pairs = [(s.predictions['depth'].double(), s.targets['depth'].double()) for s in labelled['depth']]
    errors = [((p - t).abs()[t > 0], t[t > 0]) for p, t in pairs]
    error = np.concatenate([e for e, _ in errors] or [[]])
    if error.size:
        values['depth/abs_err'] = error.mean()
        values['depth/rel_err'] = (error / np.concatenate([t for _, t in errors])).mean()
        values['depth/rmse'] = np.sqrt((error**2).mean())
    angles = []
    for s in labelled['normal']:
        target, prediction = s.targets['normal'].double(), s.predictions['normal'].double()
        valid = target.abs().sum(0) > 0
        cosine = (target * prediction).sum(0)[valid] / prediction.norm(dim=0)[valid] / target.norm(dim=0)[valid]
        angles += torch.rad2deg(torch.acos(cosine.clamp(-1, 1))).tolist()
    if angles:
        values['normal/mean'], values['normal/median'] = np.mean(angles), np.median(angles)
        for limit in (11.25, 22.5, 30):
            values[f'normal/within_{limit:g}'] = 100 * np.mean(np.array(angles) < limit)
    return values


def slow_metrics(samples, batch_size):
    batches = [slow_batch(samples[start : start + batch_size]) for start in range(0, len(samples), batch_size)]
    keys = dict.fromkeys(key for batch in batches for key in batch)
    return {key: np.mean([batch[key] for batch in batches if key in batch]) for key in keys}


def run(samples, batch_size, configs=CONFIGS):
    evaluator = Evaluator([METRICS.build(config) for config in configs])
    for start in range(0, len(samples), batch_size):
        evaluator.process(samples[start : start + batch_size])
    return evaluator.evaluate(len(samples))


@pytest.fixture(scope='module')
def samples():
    return [make_sample(index) for index in range(23)]


@pytest.mark.parametrize('batch_size', [1, 2, 5, 8])
def test_equals_the_means_of_the_batches(samples, batch_size):
    metrics, expected = run(samples, batch_size), slow_metrics(samples, batch_size)
    assert metrics.keys() == expected.keys()
    for key, value in expected.items():
        # The median comes from a histogram, half a bin off; float32 inputs at angles near 0.
        assert metrics[key] == pytest.approx(value, rel=1e-6, abs=6e-4 if key == 'normal/median' else 1e-9), key


def test_differs_from_all_pixels_and_depends_on_the_batch_size(samples):
    pixel = run(samples, 5, [config | dict(reduction='pixel') for config in CONFIGS])
    five, eight = run(samples, 5), run(samples, 8)
    for key in ('semseg/mIoU', 'depth/abs_err', 'depth/rel_err', 'normal/mean', 'normal/median'):
        assert abs(five[key] - pixel[key]) > 1e-3 * pixel[key], key
        # Per image in a batch: the last, smaller batch counts as much as the others.
        assert five[key] != pytest.approx(eight[key], rel=1e-4), key


def test_unlabelled_everywhere_gives_nan():
    sample = MultiTaskDataSample(metainfo=dict(sample_idx=0))
    metrics = run([sample], 1)
    assert len(metrics) == 10 and all(math.isnan(value) for value in metrics.values())


def test_the_log_names_the_definition_and_the_number_of_batches(samples, caplog, monkeypatch):
    monkeypatch.setattr(
        'mmrepmtl.evaluation.streaming.print_log',
        lambda message, logger, level=logging.INFO: logging.getLogger('test').log(level, message),
    )
    caplog.set_level(logging.INFO)
    run(samples, 8)
    for line in (
        'semseg: mIoU and pixAcc in percent of each image',
        'over the pixels of each batch',
        'medians included',
    ):
        assert line in caplog.text
    assert 'normal: means over 3 batches' in caplog.text and caplog.text.count('every batch alike') == 3


def test_reported_metrics_only(samples):
    config = dict(type='NormalMetric', task='normal', reduction='batch', report=('mean', 'median'))
    whole = run(samples, 5)
    assert run(samples, 5, [config]) == {key: whole[key] for key in ('normal/mean', 'normal/median')}
    pixel = dict(type='SegmentationMetric', task='semseg', num_classes=4, report=['mIoU'])
    assert list(run(samples, 5, [pixel])) == ['semseg/mIoU']


def test_constants_leave_per_batch_values_out(samples):
    configs = [CONFIGS[1], dict(type='DepthMetric', task='depth', prefix='all', target='depth')]
    constants = fit_constants(samples, configs, progress=False)
    values = evaluate_constants(samples, configs, constants, progress=False)
    assert set(values) == {'all/abs_err', 'all/rel_err', 'all/rmse'}


def refused(rank):
    messages = []
    for config in CONFIGS:
        metric = METRICS.build(config)
        for action in (lambda m=metric: m.process(None, [make_sample(rank).to_dict()]), lambda m=metric: m.evaluate(2)):
            try:
                action()
            except ValueError as error:
                messages.append(str(error))
    return messages


def test_several_processes_are_refused_on_every_rank():
    for messages in run_processes(refused):
        assert len(messages) == 6
        assert all("reduction='batch'" in text and 'for one process, but there are 2' in text for text in messages)
