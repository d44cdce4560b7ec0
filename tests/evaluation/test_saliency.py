"""The saliency metrics against loops over images, thresholds and pixels."""

import logging
import math

import numpy as np
import pytest
import torch

from mmrepmtl.evaluation import METRIC_TABLE, SaliencyMetric, evaluate_constants, fit_constants
from mmrepmtl.registry import METRICS
from mmrepmtl.structures import MultiTaskDataSample

DEFAULT = [0.2 + 0.05 * k for k in range(15)]
SETTINGS = [
    dict(),
    dict(beta_squared=1.0),
    dict(average='pixel'),
    dict(average='pixel', thresholds=[0.05 * k for k in range(1, 20)]),
]


def make_sample(index):
    generator = torch.Generator().manual_seed(index)
    size = (7 + index % 3, 9)
    noise = torch.rand(size, generator=generator)
    # Shares of salient pixels from few to many, so that means over images and over pixels differ.
    salient = torch.rand(size, generator=generator) < 0.1 + 0.2 * (index % 5)
    target = torch.where(torch.rand(size, generator=generator) < 0.15, 255, salient.long())
    sample = MultiTaskDataSample(metainfo=dict(sample_idx=index))
    if index == 5:
        target.fill_(255)
    if index == 6:
        target[target == 1] = 0
    if index % 4 != 3:
        sample.set_target('sal', target)
    sample.set_prediction('sal', (0.6 * noise + 0.4 * salient).clamp(0, 1))
    return sample


def slow_metrics(samples, thresholds=DEFAULT, beta_squared=0.3, average='image'):
    """The definitions, one pixel after the other."""
    f_values, iou_values = [], []
    for threshold in thresholds:
        images, whole = [], np.zeros(3)
        for sample in samples:
            if 'sal' not in sample.targets:
                continue
            target, probability = sample.targets['sal'].flatten().tolist(), sample.predictions['sal'].flatten().tolist()
            pairs = [(p > threshold, t == 1) for p, t in zip(probability, target, strict=True) if t != 255]
            if not pairs:
                continue
            hits = sum(p and t for p, t in pairs)
            taken, salient = sum(p for p, _ in pairs), sum(t for _, t in pairs)
            union = sum(p or t for p, t in pairs)
            whole += hits, taken, salient
            images.append(
                (hits / taken if taken else 0, hits / salient if salient else 0, hits / union if union else 1)
            )
        precision, recall, iou = np.mean(images, axis=0)
        if average == 'pixel':
            hits, taken, salient = whole
            precision, recall = hits / taken if taken else 0, hits / salient
            iou = hits / (taken + salient - hits)
        iou_values.append(iou)
        weighted = beta_squared * precision + recall
        f_values.append((1 + beta_squared) * precision * recall / weighted if weighted else 0)
    return {'sal/maxF': 100 * max(f_values), 'sal/max_mIoU': 100 * max(iou_values)}


def run(samples, batch_size=4, **arguments):
    metric = METRICS.build(dict(type='SaliencyMetric', task='sal') | arguments)
    for start in range(0, len(samples), batch_size):
        metric.process(None, [sample.to_dict() for sample in samples[start : start + batch_size]])
    return metric.evaluate(len(samples))


@pytest.fixture(scope='module')
def samples():
    return [make_sample(index) for index in range(11)]


@pytest.mark.parametrize('settings', SETTINGS, ids=str)
@pytest.mark.parametrize('batch_size', [1, 4, 11])
def test_equals_the_definitions_pixel_by_pixel(samples, settings, batch_size):
    metrics, expected = run(samples, batch_size, **settings), slow_metrics(samples, **settings)
    assert metrics.keys() == expected.keys()
    for key, value in expected.items():
        assert metrics[key] == pytest.approx(value, rel=1e-12), key


def test_the_definitions_differ(samples):
    values = [run(samples, **settings)['sal/maxF'] for settings in SETTINGS[:3]]
    assert min(abs(a - b) for a, b in zip(values, values[1:], strict=False)) > 0.1


def test_thresholds_are_the_fifteen_and_a_probability_at_one_is_not_above_it():
    assert SaliencyMetric('sal').thresholds == pytest.approx(DEFAULT)
    sample = MultiTaskDataSample(metainfo=dict(sample_idx=0))
    sample.set_target('sal', torch.tensor([[1, 0]]))
    sample.set_prediction('sal', torch.tensor([[0.75, 0.25]]))
    assert run([sample], thresholds=[0.75])['sal/maxF'] == 0
    assert run([sample], thresholds=[0.25]) == {'sal/maxF': pytest.approx(100), 'sal/max_mIoU': 100}
    sample.set_prediction('sal', torch.tensor([[0.92, 0.91]]))
    assert run([sample])['sal/max_mIoU'] == 50


def test_the_log_says_which_definition(samples, caplog, monkeypatch):
    monkeypatch.setattr(
        'mmrepmtl.evaluation.streaming.print_log',
        lambda message, logger, level=logging.INFO: logging.getLogger('test').log(level, message),
    )
    caplog.set_level(logging.INFO)
    run(samples)
    assert '(beta^2 = 0.3)' in caplog.text and '15 thresholds from 0.2 to 0.9' in caplog.text
    assert 'averaged over images' in caplog.text and 'maxF at threshold' in caplog.text
    run(samples, average='pixel')
    assert 'of all pixels of the set' in caplog.text


def test_only_one_of_the_two_counts_in_delta_p():
    assert METRIC_TABLE['maxF'] == (True, True) and METRIC_TABLE['max_mIoU'] == (True, False)


def test_metrics_can_be_left_out(samples):
    assert run(samples, report=['maxF']) == {'sal/maxF': run(samples)['sal/maxF']}
    with pytest.raises(ValueError, match=r"report=\['mIoU'\] is not a part of its metrics maxF, max_mIoU"):
        SaliencyMetric('sal', report=['mIoU'])


def test_nothing_labelled_gives_nan():
    sample = MultiTaskDataSample(metainfo=dict(sample_idx=0))
    sample.set_prediction('sal', torch.zeros(3, 3))
    assert all(math.isnan(value) for value in run([sample]).values())


def test_no_constant_is_better_than_the_baseline(samples):
    spec = dict(type='SaliencyMetric', task='sal')
    values = evaluate_constants(samples, spec, fit_constants(samples, spec, progress=False), progress=False)
    for constant in (0.0, 0.5, 1.0):
        changed = [make_sample(index) for index in range(11)]
        for sample in changed:
            sample.set_prediction('sal', torch.full_like(sample.predictions['sal'], constant))
        metrics = run(changed)
        assert metrics['sal/maxF'] <= values['sal/maxF'] + 1e-9
        assert metrics['sal/max_mIoU'] <= values['sal/max_mIoU'] + 1e-9


@pytest.mark.parametrize(
    'arguments', [dict(thresholds=[0.5, 0.4]), dict(thresholds=[]), dict(beta_squared=0), dict(average='set')]
)
def test_impossible_settings_are_named(arguments):
    with pytest.raises(ValueError, match=f"SaliencyMetric of 'sal': {next(iter(arguments))}"):
        SaliencyMetric('sal', **arguments)
