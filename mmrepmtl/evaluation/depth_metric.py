from collections.abc import Sequence

import torch
from torch import Tensor

from mmrepmtl.evaluation.streaming import StreamingMetric, Totals, check_same_shape
from mmrepmtl.registry import METRICS


@METRICS.register_module()
class DepthMetric(StreamingMetric):
    """Absolute error, relative error and root mean square error over all valid pixels of the set.

    ``abs_err`` and ``rmse`` are in the target's unit (metres), ``rel_err``, the mean of
    ``|prediction - target| / target``, is a ratio. A pixel is valid where the target is finite, above 0 and inside
    ``valid_range``. Predictions are compared as they are: neither clamped nor rescaled.

    Args:
        task: See :class:`StreamingMetric`, also for the other arguments.
        reduction: 'pixel', or 'batch': means over batches of each batch's value, as in the public code of MTAN, CAGrad,
            Nash-MTL and FAMO.
        valid_range: Smallest and largest target that counts, both included. Default: every target above 0.
    """

    kind = 'depth'
    names = ('abs_err', 'rel_err', 'rmse')
    reductions = ('pixel', 'batch')

    def __init__(
        self,
        task: str,
        target: str | None = None,
        prefix: str | None = None,
        reduction: str = 'pixel',
        valid_range: tuple[float, float] | None = None,
        report: Sequence[str] | None = None,
    ) -> None:
        super().__init__(task, target, prefix, reduction, report)
        if valid_range is not None and not 0 <= valid_range[0] < valid_range[1]:
            raise ValueError(
                f"DepthMetric of '{task}': valid_range is {tuple(valid_range)}, but must be (low, high) "
                'with 0 <= low < high'
            )
        self.valid_range = valid_range

    def valid(self, target: Tensor) -> Tensor:
        """Mask of the pixels that count, in the target's shape."""
        valid = (target > 0) & target.isfinite()
        if self.valid_range is not None:
            valid &= (target >= self.valid_range[0]) & (target <= self.valid_range[1])
        return valid

    def zeros(self) -> Totals:
        """``count`` of valid pixels, and sums of absolute, relative and squared errors."""
        sums = {name: torch.zeros((), dtype=torch.float64) for name in ('abs', 'rel', 'square')}
        return {'count': torch.tensor(0)} | sums

    def check(self, prediction: Tensor, target: Tensor) -> None:
        """Raises ValueError unless both have one shape."""
        check_same_shape(prediction, target)

    def statistics(self, predictions: Sequence[Tensor], targets: Sequence[Tensor]) -> Totals:
        """The additive statistics of these samples; see the base class."""
        prediction = torch.cat([value.flatten() for value in predictions])
        target = torch.cat([value.flatten() for value in targets])
        valid = self.valid(target)
        # float64 before the difference: the sums run over 10^8 pixels.
        target = target[valid].double()
        error = (prediction[valid].double() - target).abs()
        return {'count': valid.sum(), 'abs': error.sum(), 'rel': (error / target).sum(), 'square': error.square().sum()}

    def compute(self, totals: Totals) -> dict[str, float]:
        """``abs_err`` and ``rmse`` in the unit of the targets, ``rel_err`` as a fraction."""
        count = totals['count']
        return {
            'abs_err': float(totals['abs'] / count),
            'rel_err': float(totals['rel'] / count),
            'rmse': float((totals['square'] / count).sqrt()),
        }

    def definition(self) -> str:
        """Describes the numbers for the log: their unit, what they are averaged over, what is left out."""
        limits = 'above 0' if self.valid_range is None else f'above 0 and in {tuple(self.valid_range)}'
        over = {
            'pixel': 'over all pixels of the set whose target is {} (not means of per-image or per-batch values)',
            'batch': 'over the pixels of each batch whose target is {}, then the mean over batches, every batch alike: '
            'depends on the batch size, not comparable with values over all pixels of the set',
        }[self.reduction].format(limits)
        return (
            'abs_err and rmse in the unit of the target, rel_err = |error| / target; '
            f'{over}; predictions are not clamped'
        )
