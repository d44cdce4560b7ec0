from collections.abc import Sequence

import torch
from torch import Tensor

from mmrepmtl.evaluation.streaming import StreamingMetric, Totals, check_same_shape
from mmrepmtl.registry import METRICS

THRESHOLDS = {'within_11.25': 11.25, 'within_22.5': 22.5, 'within_30': 30.0}
BINS = 180_000  # each is 1e-3 degree wide


@METRICS.register_module()
class NormalMetric(StreamingMetric):
    """Angular error of surface normals over all valid pixels of the set: mean, median and shares below thresholds.

    Mean and median are in degrees, the shares (``angle < threshold``) in percent. All come from the exact angles except
    the median, which comes from a histogram with bins of 1e-3 degree and is off by at most half a bin. A pixel is valid
    where the target is not the zero vector. Predictions need not be of unit length; a zero vector, which has no
    direction, counts as 90 degrees.

    Args:
        task: See :class:`StreamingMetric`, also for the other arguments. PASCAL-Context's mErr is ``mean``.
        reduction: 'pixel', or 'batch': means over batches of each batch's value, the median included, as in the public
            code of MTAN, CAGrad, Nash-MTL and FAMO.
    """

    kind = 'normals'
    names = ('mean', 'median', *THRESHOLDS)
    reductions = ('pixel', 'batch')

    def valid(self, target: Tensor) -> Tensor:
        """Mask of the pixels that count: (3, ...) -> (...)."""
        size = target.abs().sum(0)
        return (size > 0) & size.isfinite()

    def zeros(self) -> Totals:
        """``count`` of valid pixels, those below each angle, the sum and the histogram of angles."""
        counts = {name: torch.tensor(0) for name in ('count', *THRESHOLDS)}
        histogram = torch.zeros(BINS, dtype=torch.int64)
        return counts | {'angle': torch.zeros((), dtype=torch.float64), 'histogram': histogram}

    def check(self, prediction: Tensor, target: Tensor) -> None:
        """Raises ValueError unless both are (3, H, W)."""
        check_same_shape(prediction, target)
        if target.shape[0] != 3:
            raise ValueError(f'normals have shape (3, H, W), but the target has {tuple(target.shape)}')

    def statistics(self, predictions: Sequence[Tensor], targets: Sequence[Tensor]) -> Totals:
        """The additive statistics of these samples; see the base class."""
        prediction = torch.cat([value.flatten(1) for value in predictions], dim=1)
        target = torch.cat([value.flatten(1) for value in targets], dim=1)
        valid = self.valid(target).nonzero().squeeze(1)
        angle = angles_degrees(prediction.index_select(1, valid).double(), target.index_select(1, valid).double())
        bins = (angle * (BINS / 180)).long().clamp_(max=BINS - 1)
        return {
            'count': torch.tensor(len(valid)),
            'angle': angle.sum(),
            'histogram': torch.bincount(bins, minlength=BINS),
        } | {name: (angle < limit).sum() for name, limit in THRESHOLDS.items()}

    def compute(self, totals: Totals) -> dict[str, float]:
        """The metrics of the totals; see the base class."""
        count = int(totals['count'])
        below = totals['histogram'].cumsum(0)
        # The two middle values, which are one for an odd count, as in numpy.median.
        middle = torch.searchsorted(below, torch.tensor([(count - 1) // 2, count // 2]), right=True)
        return {
            'mean': float(totals['angle'] / count),
            'median': float((middle.double().mean() + 0.5) * (180 / BINS)),
        } | {name: int(totals[name]) / count * 100 for name in THRESHOLDS}

    def definition(self) -> str:
        """Describes the numbers for the log: their unit, what they are averaged over, what is left out."""
        over = {
            'pixel': 'over all valid pixels of the set (not means of per-image or per-batch values)',
            'batch': 'over the valid pixels of each batch, then the mean over batches, every batch alike, medians '
            'included: depends on the batch size, not comparable with values over all pixels of the set',
        }[self.reduction]
        return (
            f'angles in degrees, shares in percent, {over}; the median comes from a histogram with bins of '
            f'{180 / BINS:g} degree'
        )


def angles_degrees(a: Tensor, b: Tensor) -> Tensor:
    """Angles between vectors of any length in degrees, 90 where one of them is zero: (3, N), (3, N) -> (N,).

    By atan2, since the arc cosine loses half of the digits near 0 and 180 degrees.
    """
    # Not vector_norm, which takes ten times as long over the first of two axes.
    cross, dot = torch.linalg.cross(a, b, dim=0).square_().sum(0).sqrt_(), (a * b).sum(0)
    angles = torch.atan2(cross, dot).rad2deg_()
    # Both are 0 only where a vector is zero, which atan2 would take for parallel.
    angles[(cross == 0) & (dot == 0)] = 90.0
    return angles
