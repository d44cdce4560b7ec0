import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mmrepmtl.evaluation.binary_metric import BinaryMetric
from mmrepmtl.evaluation.boundaries import count_matches
from mmrepmtl.evaluation.streaming import Totals
from mmrepmtl.registry import METRICS
from mmrepmtl.utils.morphology import thin


@METRICS.register_module()
class EdgeMetric(BinaryMetric):
    """The boundary F-measure at the best threshold of the whole set (odsF), in percent.

    For each of K thresholds k / (K + 1) the pixels with a probability of at least the threshold are thinned to lines
    and paired with the true boundary pixels, one to one, at most ``max_distance`` times the image's diagonal apart (see
    :func:`count_matches`). Pairs, predicted and true pixels are summed over the set; ``odsF`` is the largest
    ``2 * P * R / (P + R)`` over the thresholds, without interpolation between them (as in SEISM; BSDS interpolates).
    No non-maximum suppression comes before the thinning. Void pixels are neither predicted nor true; the diagonal is
    that of the target.

    True pixels are taken as they are, so the data set gives thin lines. An image of 375 x 500 takes about 10 to 20 ms
    per threshold.

    Args:
        task: See :class:`StreamingMetric`, also for the other arguments.
        thresholds: Their number K; 99 in published numbers.
        max_distance: Fraction of the diagonal; 0.0075 on PASCAL and BSDS, 0.011 on NYUv2.

    Raises:
        ValueError: ``thresholds`` is below 1, or ``max_distance`` not positive.

    Source: Martin et al., PAMI 26(5), 2004; Arbelaez et al., PAMI 33(5), 2011, section 3.1.
    """

    names = ('odsF',)

    def __init__(
        self,
        task: str,
        target: str | None = None,
        prefix: str | None = None,
        reduction: str = 'pixel',
        report: Sequence[str] | None = None,
        thresholds: int = 99,
        max_distance: float = 0.0075,
    ) -> None:
        super().__init__(task, target, prefix, reduction, report)
        if thresholds < 1:
            raise ValueError(f"EdgeMetric of '{task}': thresholds={thresholds} must be at least 1")
        if not 0 < max_distance <= 1:
            raise ValueError(f"EdgeMetric of '{task}': max_distance={max_distance} must be a fraction in (0, 1]")
        self.thresholds = tuple(k / (thresholds + 1) for k in range(1, thresholds + 1))
        self.max_distance = max_distance

    def zeros(self) -> Totals:
        """Counts of true pixels, and of matched and predicted ones at each threshold."""
        size = len(self.thresholds)
        counts = {name: torch.zeros(size, dtype=torch.int64) for name in ('matched', 'predicted')}
        return {'count': torch.tensor(0), 'true': torch.tensor(0)} | counts

    def statistics(self, predictions: Sequence[Tensor], targets: Sequence[Tensor]) -> Totals:
        """The additive statistics of these samples; see the base class."""
        totals = self.zeros()
        for prediction, target in zip(predictions, targets, strict=True):
            valid, true = self.valid(target).cpu().numpy(), (target == 1).cpu().numpy()
            matched, predicted = self._image(prediction.double().cpu().numpy(), true, valid)
            part = {'count': valid.sum(), 'true': true.sum(), 'matched': matched, 'predicted': predicted}
            totals = {name: totals[name] + torch.as_tensor(part[name]) for name in totals}
        return totals

    def _image(self, probability: np.ndarray, true: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of paired and of predicted pixels of one image by threshold, (K,) int64."""
        limit = self.max_distance * math.hypot(*true.shape)
        matched, predicted = np.zeros((2, len(self.thresholds)), dtype=np.int64)
        pixels_before = None
        for k, threshold in enumerate(self.thresholds):
            above = (probability >= threshold) & valid
            pixels = np.count_nonzero(above)
            if pixels == pixels_before:  # the maps shrink, so this one is the same
                matched[k], predicted[k] = matched[k - 1], predicted[k - 1]
                continue
            pixels_before = pixels
            lines = thin(above)
            matched[k], predicted[k] = count_matches(lines, true, limit), np.count_nonzero(lines)
        return matched, predicted

    def compute(self, totals: Totals) -> dict[str, float]:
        """The metrics of the totals: NaN if the set has no boundary."""
        return {'odsF': float(_f_measure(totals).max()) * 100}

    def definition(self) -> str:
        """Says how predictions are paired with true pixels."""
        return (
            f'odsF in percent, the largest F over {len(self.thresholds)} thresholds, precision and recall from counts '
            'over the whole set; predictions are thinned, and paired one to one with true pixels at most '
            f'{self.max_distance:g} of the diagonal away, as many as possible (in process, not the MATLAB program)'
        )

    def describe(self, totals: Totals) -> str:
        """The best threshold, with its precision and recall."""
        best = int(_f_measure(totals).argmax())
        matched, predicted = int(totals['matched'][best]), int(totals['predicted'][best])
        return (
            f'{self.prefix}: odsF at threshold {self.thresholds[best]:.3g} with precision '
            f'{100 * matched / max(predicted, 1):.2f} % and recall {100 * matched / max(int(totals["true"]), 1):.2f} %'
        )


def _f_measure(totals: Totals) -> Tensor:
    """F by threshold, (K,) float64: 2PR / (P + R) is this, and 0 where no pair is; NaN without a true pixel."""
    f = 2 * totals['matched'].double() / (totals['predicted'] + totals['true'])
    return f if totals['true'] > 0 else torch.full_like(f, math.nan)
