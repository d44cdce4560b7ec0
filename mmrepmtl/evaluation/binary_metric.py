from torch import Tensor

from mmrepmtl.evaluation.streaming import StreamingMetric, check_same_shape
from mmrepmtl.structures.kinds import VOID


class BinaryMetric(StreamingMetric):
    """Base of metrics of yes-or-no maps: probabilities (H, W) against 0, 1 and 255 (void, does not count)."""

    kind = 'binary'

    def valid(self, target: Tensor) -> Tensor:
        """Mask of the pixels that count, (H, W)."""
        return target != VOID

    def check(self, prediction: Tensor, target: Tensor) -> None:
        """Checks the target and the prediction of one sample; see the base class."""
        check_same_shape(prediction, target)
        if target.ndim != 2 or target.is_floating_point():
            raise ValueError(f'the target must be (H, W) integers, not {tuple(target.shape)} {target.dtype}')
        labels = target[self.valid(target)]
        if bool(((labels != 0) & (labels != 1)).any()):
            raise ValueError(
                f'the target holds labels from {int(labels.min())} to {int(labels.max())}, but must hold 0 and 1 '
                f'(void: {VOID})'
            )
        if not prediction.is_floating_point():
            raise ValueError(f'the prediction holds {prediction.dtype}, but must hold probabilities')
        low, high = float(prediction.min()), float(prediction.max())
        if low < 0 or high > 1:
            raise ValueError(f'the prediction holds values from {low:g} to {high:g}, but must hold probabilities')
