from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mmrepmtl.evaluation.binary_metric import BinaryMetric
from mmrepmtl.evaluation.streaming import Totals
from mmrepmtl.registry import METRICS

THRESHOLDS = tuple(np.linspace(0.2, 0.9, 15).tolist())
AVERAGES = ('image', 'pixel')


@METRICS.register_module()
class SaliencyMetric(BinaryMetric):
    """The largest F-measure and the largest mean IoU of the salient pixels over thresholds, in percent.

    At each threshold the pixels with a probability above it are taken as salient. With ``average='image'`` precision,
    recall and IoU are computed for each image and averaged over the images that have a valid pixel; with 'pixel' they
    come from the pixels of the whole set. ``maxF`` is the maximum over the thresholds of
    ``(1 + b) * P * R / (b * P + R)``, where b is ``beta_squared``; ``max_mIoU`` that of the (mean) IoU. An image
    without a pixel taken has precision 0, one without a salient pixel recall 0, one without either IoU 1.

    Three definitions are in use, so numbers compare only within one: 'image' with ``beta_squared=1`` and these 15
    thresholds (ASTMT, arXiv 1904.08918; its table shows max_mIoU); 'pixel' with 0.3 and 19 thresholds from 0.05 to 0.95
    (ATRC, InvPT); 'image' with 0.3 (Achanta et al., CVPR 2009, and the literature on salient objects). The log says
    which one this is.

    Args:
        task: See :class:`StreamingMetric`, also for the other arguments.
        thresholds: In [0, 1], ascending. Default: 0.2 to 0.9 in steps of 0.05.
        beta_squared: Weight of precision against recall in maxF.
        average: 'image' or 'pixel'.

    Raises:
        ValueError: On other thresholds, a ``beta_squared`` that is not positive, or another ``average``.
    """

    names = ('maxF', 'max_mIoU')

    def __init__(
        self,
        task: str,
        target: str | None = None,
        prefix: str | None = None,
        reduction: str = 'pixel',
        report: Sequence[str] | None = None,
        thresholds: Sequence[float] = THRESHOLDS,
        beta_squared: float = 0.3,
        average: str = 'image',
    ) -> None:
        super().__init__(task, target, prefix, reduction, report)
        ascending = all(low < high for low, high in zip(thresholds, thresholds[1:], strict=False))
        if not thresholds or not ascending or thresholds[0] < 0 or thresholds[-1] > 1:
            raise ValueError(f"SaliencyMetric of '{task}': thresholds={thresholds} must be ascending and in [0, 1]")
        if not beta_squared > 0:
            raise ValueError(f"SaliencyMetric of '{task}': beta_squared={beta_squared} must be positive")
        if average not in AVERAGES:
            raise ValueError(f"SaliencyMetric of '{task}': average={average!r}, expected 'image' or 'pixel'")
        self.thresholds = tuple(float(threshold) for threshold in thresholds)
        self.beta_squared = beta_squared
        self.average = average

    def zeros(self) -> Totals:
        """Totals of no sample; see the base class."""
        size = len(self.thresholds)
        if self.average == 'pixel':
            counts = {name: torch.zeros(size, dtype=torch.int64) for name in ('hits', 'taken')}
            return {'count': torch.tensor(0), 'salient': torch.tensor(0)} | counts
        sums = {name: torch.zeros(size, dtype=torch.float64) for name in ('precision', 'recall', 'iou')}
        return {'count': torch.tensor(0), 'images': torch.tensor(0)} | sums

    def statistics(self, predictions: Sequence[Tensor], targets: Sequence[Tensor]) -> Totals:
        """The additive statistics of these samples; see the base class."""
        totals = {name: value.to(predictions[0].device) for name, value in self.zeros().items()}
        for prediction, target in zip(predictions, targets, strict=True):
            valid = self.valid(target)
            part = self._image(prediction[valid], target[valid] == 1)
            totals = {name: totals[name] + part[name] for name in totals}
        return totals

    def _image(self, probability: Tensor, salient: Tensor) -> Totals:
        """The totals of one image's valid pixels, (N,) each."""
        # float64, in which the thresholds are what they say; the index is the number of thresholds below.
        thresholds = torch.tensor(self.thresholds, dtype=torch.float64, device=probability.device)
        passed = torch.bucketize(probability.double(), thresholds)
        size = len(self.thresholds)
        # Pixels above threshold j are those that passed j + 1 thresholds or more.
        taken, hits = (
            torch.bincount(values, minlength=size + 1).flip(0).cumsum(0).flip(0)[1:]
            for values in (passed, passed[salient])
        )
        count, positives = torch.tensor(len(salient), device=taken.device), salient.sum()
        if self.average == 'pixel':
            return {'count': count, 'salient': positives, 'hits': hits, 'taken': taken}
        precision, recall, iou = _rates(hits, taken, positives)
        found = (count > 0).to(torch.int64)
        # An image of void pixels only is none: its IoU of 1 does not count, the others are 0.
        rates = {'precision': precision, 'recall': recall, 'iou': iou * found}
        return {'count': count, 'images': found} | rates

    def compute(self, totals: Totals) -> dict[str, float]:
        """The metrics of the totals; see the base class."""
        f, iou, _, _ = self._curves(totals)
        return {'maxF': float(f.max()) * 100, 'max_mIoU': float(iou.max()) * 100}

    def _curves(self, totals: Totals) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """F-measure, IoU, precision and recall by threshold, (T,) float64 fractions each."""
        if self.average == 'pixel':
            precision, recall, iou = _rates(totals['hits'], totals['taken'], totals['salient'])
        else:
            precision, recall, iou = (totals[name] / totals['images'] for name in ('precision', 'recall', 'iou'))
        weighted = self.beta_squared * precision + recall
        f = torch.where(weighted > 0, (1 + self.beta_squared) * precision * recall / weighted, 0)
        return f, iou, precision, recall

    def definition(self) -> str:
        """Describes the numbers for the log: their unit, what they are averaged over, what is left out."""
        how = {
            'image': 'of precision, recall and IoU averaged over images',
            'pixel': 'of precision, recall and IoU of all pixels of the set',
        }[self.average]
        return (
            f'maxF (beta^2 = {self.beta_squared:g}) and max_mIoU (IoU of the salient pixels) in percent, each the '
            f'maximum over {len(self.thresholds)} thresholds from {self.thresholds[0]:g} to {self.thresholds[-1]:g} '
            f'{how}'
        )

    def describe(self, totals: Totals) -> str:
        """The thresholds of the best F-measure and IoU, with precision and recall."""
        f, iou, precision, recall = self._curves(totals)
        best = int(f.argmax())
        return (
            f'{self.prefix}: maxF at threshold {self.thresholds[best]:g} with precision {100 * precision[best]:.2f} % '
            f'and recall {100 * recall[best]:.2f} %, max_mIoU at threshold {self.thresholds[int(iou.argmax())]:g}'
        )


def _rates(hits: Tensor, taken: Tensor, positives: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Precision, recall and IoU by threshold, (T,) float64; see the class for what stands for 0 / 0."""
    union = taken + positives - hits
    hits = hits.double()
    precision = torch.where(taken > 0, hits / taken.clamp(min=1), 0)
    recall = torch.where(positives > 0, hits / positives.clamp(min=1), 0)
    return precision, recall, torch.where(union > 0, hits / union.clamp(min=1), 1)
