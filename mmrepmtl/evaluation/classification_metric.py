from collections.abc import Sequence

import torch
from torch import Tensor

from mmrepmtl.evaluation.streaming import StreamingMetric, Totals
from mmrepmtl.registry import METRICS


@METRICS.register_module()
class ClassificationMetric(StreamingMetric):
    """Top-1 accuracy in percent over all labelled images; of equal scores the first class wins.

    Args:
        task: See :class:`StreamingMetric`, also for the other arguments.
    """

    kind = 'classification'
    names = ('top1',)

    def zeros(self) -> Totals:
        """``count`` of labelled images and ``hits``, both 0."""
        return {'count': torch.tensor(0), 'hits': torch.tensor(0)}

    def check(self, prediction: Tensor, target: Tensor) -> None:
        """Raises ValueError unless these are scores (K,) and one of their classes."""
        if prediction.ndim != 1 or target.numel() != 1:
            raise ValueError(
                f'classification needs scores (K,) and one class id, not {tuple(prediction.shape)} and '
                f'{tuple(target.shape)}'
            )
        if not 0 <= int(target) < len(prediction):
            raise ValueError(f'the target is class {int(target)}, but there are scores for 0 to {len(prediction) - 1}')

    def statistics(self, predictions: Sequence[Tensor], targets: Sequence[Tensor]) -> Totals:
        """The images, and those whose class has the highest score."""
        best = torch.stack([scores.argmax() for scores in predictions])
        hits = best == torch.stack([target.reshape(()) for target in targets])
        return {'count': torch.tensor(len(targets)), 'hits': hits.sum()}

    def compute(self, totals: Totals) -> dict[str, float]:
        """``top1`` in percent."""
        return {'top1': int(totals['hits']) / int(totals['count']) * 100}

    def definition(self) -> str:
        """Says what ``top1`` is averaged over."""
        return 'top1 in percent of all labelled images of the set (not a mean over classes)'
