import math

from mmengine.hooks import Hook

from mmrepmtl.evaluation.metric_table import AVERAGE
from mmrepmtl.registry import HOOKS


@HOOKS.register_module()
class AverageMetricHook(Hook):
    """Adds ``avg/METRIC``, the mean over tasks of one metric, to the metrics of each validation and test.

    It is logged and stored with the others and may select a checkpoint; Delta p leaves it out. With a single task (a
    single-task baseline) there is no average.

    Args:
        metric: Name of the metric, such as 'top1' or 'mIoU'.
    """

    # Before the hooks that log, store and compare the metrics.
    priority = 'HIGHEST'

    def __init__(self, metric: str) -> None:
        self.metric = metric

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        """Adds the average in place; NaN where a task has none."""
        self._add(metrics)

    def after_test_epoch(self, runner, metrics: dict | None = None) -> None:
        """As after a validation."""
        self._add(metrics)

    def _add(self, metrics: dict | None) -> None:
        if metrics is None:
            return
        values = [value for key, value in metrics.items() if key.rpartition('/')[2] == self.metric]
        if len(values) > 1:
            metrics[f'{AVERAGE}/{self.metric}'] = math.fsum(values) / len(values)
