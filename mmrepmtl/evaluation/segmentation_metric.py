import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mmrepmtl.evaluation.streaming import StreamingMetric, Totals, check_same_shape
from mmrepmtl.registry import METRICS
from mmrepmtl.structures.kinds import VOID


@METRICS.register_module()
class SegmentationMetric(StreamingMetric):
    """Mean IoU and pixel accuracy in percent, from one confusion matrix of the whole set.

    A class that occurs neither in the ground truth nor in the predictions has no IoU and is left out of the mean.
    Pixels with the label 255 (void) do not count. The log shows the IoU of each class.

    Args:
        task: See :class:`StreamingMetric`, also for the other arguments.
        reduction: 'pixel', or 'batch': means over batches of the mean over each batch's images, as in MTAN's first
            release. The public code of CAGrad, Nash-MTL and FAMO has one confusion matrix here, which is 'pixel', and
            per-batch values for depth and normals only. MTAN also counts predictions on void pixels; this does not.
        num_classes: Number of classes. Default: from the data set's ``metainfo['targets'][target]['classes']``.
    """

    kind = 'segmentation'
    names = ('mIoU', 'pixAcc')
    reductions = ('pixel', 'batch')

    def __init__(
        self,
        task: str,
        target: str | None = None,
        prefix: str | None = None,
        reduction: str = 'pixel',
        num_classes: int | None = None,
        report: Sequence[str] | None = None,
    ) -> None:
        super().__init__(task, target, prefix, reduction, report)
        self._num_classes = num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, their numbers where the data set names none."""
        targets = (self.dataset_meta or {}).get('targets', {})
        names = tuple(targets.get(self.target, {}).get('classes') or ())
        if self._num_classes is None and not names:
            raise ValueError(
                f"SegmentationMetric of '{self.task}': the number of classes is unknown; set num_classes, "
                f"or the data set's metainfo['targets']['{self.target}']['classes']"
            )
        if self._num_classes is None or len(names) == self._num_classes:
            return names
        if names:
            raise ValueError(
                f"SegmentationMetric of '{self.task}': num_classes is {self._num_classes}, but the data "
                f'set has {len(names)} classes'
            )
        return tuple(str(index) for index in range(self._num_classes))

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def valid(self, target: Tensor) -> Tensor:
        """Mask of the pixels that count, (H, W)."""
        return target != VOID

    def zeros(self) -> Totals:
        """The confusion matrix, and ``count`` of labelled pixels."""
        size = self.num_classes
        return {'count': torch.tensor(0), 'confusion': torch.zeros(size, size, dtype=torch.int64)}

    def check(self, prediction: Tensor, target: Tensor) -> None:
        """Checks the target and the prediction of one sample; see the base class."""
        check_same_shape(prediction, target)
        for what, values in (('prediction', prediction), ('target', target[self.valid(target)])):
            if values.is_floating_point():
                raise ValueError(f'the {what} holds {values.dtype}, but must hold integer class ids')
            if bool(((values < 0) | (values >= self.num_classes)).any()):
                raise ValueError(
                    f'the {what} holds class ids from {int(values.min())} to {int(values.max())}, but the '
                    f'classes are 0 to {self.num_classes - 1} (void in the target: {VOID})'
                )

    def statistics(self, predictions: Sequence[Tensor], targets: Sequence[Tensor]) -> Totals:
        """The additive statistics of these samples; see the base class."""
        prediction = torch.cat([value.flatten() for value in predictions]).long()
        target = torch.cat([value.flatten() for value in targets]).long()
        valid = self.valid(target)
        size = self.num_classes
        pairs = target[valid] * size + prediction[valid]
        confusion = torch.bincount(pairs, minlength=size * size).view(size, size)
        return {'count': confusion.sum(), 'confusion': confusion}

    def compute(self, totals: Totals) -> dict[str, float]:
        """``mIoU`` and ``pixAcc`` in percent."""
        iou, present = class_iou(totals['confusion'])
        return {
            'mIoU': float(iou[present].mean()) * 100,
            'pixAcc': int(totals['confusion'].diagonal().sum()) / int(totals['count']) * 100,
        }

    def batch_values(self, predictions: Sequence[Tensor], targets: Sequence[Tensor]) -> dict[str, float] | None:
        """The mean over the images that have a labelled pixel, each with its own confusion matrix."""
        pairs = zip(predictions, targets, strict=True)
        each = [super(SegmentationMetric, self).batch_values([one], [other]) for one, other in pairs]
        images = [values for values in each if values is not None]
        if not images:
            return None
        return {name: math.fsum(values[name] for values in images) / len(images) for name in self.names}

    def definition(self) -> str:
        """Says what the metrics are averaged over."""
        if self.reduction == 'batch':
            return (
                'mIoU and pixAcc in percent of each image, from its own confusion matrix, over the classes that '
                "occur in it or in its prediction; then the mean over each batch's images and over batches, every "
                'batch alike: depends on the batch size, not comparable with values from one confusion matrix'
            )
        return (
            'mIoU and pixAcc in percent, from one confusion matrix of all labelled pixels of the set; mIoU is the '
            'mean over the classes that occur in the ground truth or in the predictions'
        )

    def describe(self, totals: Totals) -> str:
        """A table of the IoU of each class and its share of the pixels."""
        iou, present = class_iou(totals['confusion'])
        share = totals['confusion'].sum(1).double() / totals['count']
        rows = [
            f'  {name:<24}{100 * value:8.2f}{100 * pixels:10.2f}' if here else f'  {name:<24}{"absent":>8}{0:10.2f}'
            for name, value, pixels, here in zip(
                self.class_names, iou.tolist(), share.tolist(), present.tolist(), strict=True
            )
        ]
        return '\n'.join([f'{self.prefix}: per class', f'  {"class":<24}{"IoU %":>8}{"pixels %":>10}', *rows])


def class_iou(confusion: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union per class.

    Args:
        confusion: (K, K) pixels by [true class, predicted class].

    Returns:
        (K,) float64 fractions, NaN for absent classes, and the (K,) mask of the classes that occur.
    """
    hits = confusion.diagonal().double()
    union = (confusion.sum(0) + confusion.sum(1)).double() - hits
    return hits / union, union > 0
