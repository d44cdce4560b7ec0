from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mmrepmtl.registry import MODELS
from mmrepmtl.structures import MultiTaskDataSample

from ..losses import check_penalty, regression_terms
from .base import TaskHead, full_precision


@MODELS.register_module()
class RegressionHead(TaskHead):
    """A vector of numbers per image: a regression over the values that are not NaN.

    Target, raw output and prediction are (num_values,).

    Args:
        num_values: Length of the vector.
        decoder, in_channels, target, loss_weight: See :class:`TaskHead`.
        loss: ``'l1'``, ``'mse'`` or ``'smooth_l1'``.
    """

    kind = 'regression'

    def __init__(
        self,
        num_values: int = 1,
        decoder: dict[str, Any] | nn.Module | None = None,
        in_channels: int | Sequence[int] | None = None,
        target: str | None = None,
        loss_weight: float = 1.0,
        loss: str = 'l1',
    ) -> None:
        decoder = dict(type='mmrepmtl.LinearDecoder') if decoder is None else decoder
        super().__init__(decoder, num_values, in_channels, target, loss_weight)
        self.loss = check_penalty(type(self).__name__, loss)

    def void_target(self, output: Tensor) -> Tensor:
        """(D,) of NaN."""
        return output.new_full(output.shape[1:], float('nan'))

    def compute_terms(self, output: Tensor, target: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """The penalty over the values that are finite."""
        return {self.loss: regression_terms(output, target, target.isfinite(), self.loss)}

    def predict(self, output: Tensor, data_samples: Sequence[MultiTaskDataSample]) -> list[Tensor]:
        """The values (D,) of each image."""
        return list(full_precision(output))
