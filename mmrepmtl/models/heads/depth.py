from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mmrepmtl.registry import MODELS

from ..losses import check_penalty, regression_terms
from .dense import DenseHead


@MODELS.register_module()
class DepthHead(DenseHead):
    """Depth (or inverse depth): a regression over the valid pixels, those with a finite target above 0.

    Target, raw output and prediction are (1, H, W), in metres (or the target's own unit).

    Args:
        decoder, in_channels, target, loss_weight: See :class:`TaskHead`.
        loss: ``'l1'`` (the paper's), ``'mse'`` or ``'smooth_l1'``.
    """

    kind = 'depth'

    def __init__(
        self,
        decoder: dict[str, Any] | nn.Module,
        in_channels: int | Sequence[int] | None = None,
        target: str | None = None,
        loss_weight: float = 1.0,
        loss: str = 'l1',
    ) -> None:
        super().__init__(decoder, 1, in_channels, target, loss_weight)
        self.loss = check_penalty(type(self).__name__, loss)

    def void_target(self, output: Tensor) -> Tensor:
        """(1, H, W) of 0, which is no depth."""
        return output.new_zeros(1, *output.shape[-2:])

    def compute_terms(self, output: Tensor, target: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """The penalty over the pixels with a depth."""
        valid = (target > 0) & target.isfinite()
        return {self.loss: regression_terms(output, target, valid, self.loss)}
