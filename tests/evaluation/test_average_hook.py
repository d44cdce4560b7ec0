import math

import pytest

from mmrepmtl.evaluation import AverageMetricHook, delta_p_task, higher_is_better
from mmrepmtl.registry import HOOKS


def averaged(metrics, after='after_val_epoch'):
    hook = HOOKS.build(dict(type='AverageMetricHook', metric='top1'))
    getattr(hook, after)(None, metrics)
    return metrics


@pytest.mark.parametrize('after', ['after_val_epoch', 'after_test_epoch'])
def test_the_mean_over_tasks_of_one_metric_is_added(after):
    metrics = averaged({'a/top1': 10.0, 'b/top1': 40.0, 'c/top1': 70.0, 'c/mae': 3.0}, after)
    assert metrics == {'a/top1': 10.0, 'b/top1': 40.0, 'c/top1': 70.0, 'c/mae': 3.0, 'avg/top1': 40.0}
    assert higher_is_better('avg/top1')


def test_one_task_has_no_average():
    assert averaged({'a/top1': 10.0, 'b/mae': 3.0}) == {'a/top1': 10.0, 'b/mae': 3.0}
    AverageMetricHook('top1').after_val_epoch(None)


def test_a_task_without_labels_leaves_no_average():
    assert math.isnan(averaged({'a/top1': 10.0, 'b/top1': math.nan})['avg/top1'])


def test_delta_p_does_not_count_it():
    baseline = {'a/top1': 50.0, 'b/top1': 50.0}
    metrics = averaged({'a/top1': 55.0, 'b/top1': 75.0})
    assert delta_p_task(metrics, baseline) == pytest.approx(30)
    assert delta_p_task(metrics, averaged(dict(baseline))) == pytest.approx(30)
