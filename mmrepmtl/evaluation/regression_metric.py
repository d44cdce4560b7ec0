from collections.abc import Sequence

import torch
from torch import Tensor

from mmrepmtl.evaluation.streaming import StreamingMetric, Totals, check_same_shape
from mmrepmtl.registry import METRICS


@METRICS.register_module()
class RegressionMetric(StreamingMetric):
    """Mean absolute and root mean square error over all valid values of all labelled images, in the target's unit.

    A value is valid where the target is finite; the D values of an image count alike.

    Args:
        task: See :class:`StreamingMetric`, also for the other arguments.
    """

    kind = 'regression'
    names = ('mae', 'rmse')

    def valid(self, target: Tensor) -> Tensor:
        """Mask of the values that count, (D,)."""
        return target.isfinite()

    def zeros(self) -> Totals:
        """``count`` of valid values, and sums of absolute and squared errors."""
        return {'count': torch.tensor(0)} | {name: torch.zeros((), dtype=torch.float64) for name in ('abs', 'square')}

    def check(self, prediction: Tensor, target: Tensor) -> None:
        """Raises ValueError unless both have one shape."""
        check_same_shape(prediction, target)

    def statistics(self, predictions: Sequence[Tensor], targets: Sequence[Tensor]) -> Totals:
        """Count and errors of the valid values of all samples."""
        target = torch.cat([value.flatten() for value in targets])
        valid = self.valid(target)
        prediction = torch.cat([value.flatten() for value in predictions])[valid].double()
        error = (prediction - target[valid].double()).abs()
        return {'count': valid.sum(), 'abs': error.sum(), 'square': error.square().sum()}

    def compute(self, totals: Totals) -> dict[str, float]:
        """``mae`` and ``rmse`` in the unit of the targets."""
        return {
            'mae': float(totals['abs'] / totals['count']),
            'rmse': float((totals['square'] / totals['count']).sqrt()),
        }

    def definition(self) -> str:
        """Says what the errors are averaged over."""
        return 'mae and rmse over all valid values of the set, all components alike'
