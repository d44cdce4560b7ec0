from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mmrepmtl.registry import MODELS

from ..losses import angular_terms, unit_vectors
from .dense import DenseHead


@MODELS.register_module()
class NormalHead(DenseHead):
    """Surface normals: 1 - cosine over the valid pixels, those whose target is not the zero vector.

    Target and prediction are (3, H, W) unit vectors, the raw output is not normalised.

    Args:
        decoder, in_channels, target, loss_weight: See :class:`TaskHead`.
    """

    kind = 'normals'

    def __init__(
        self,
        decoder: dict[str, Any] | nn.Module,
        in_channels: int | Sequence[int] | None = None,
        target: str | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(decoder, 3, in_channels, target, loss_weight)

    def void_target(self, output: Tensor) -> Tensor:
        """(3, H, W) of 0, which is no direction."""
        return output.new_zeros(3, *output.shape[-2:])

    def compute_terms(self, output: Tensor, target: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """``cos`` over the pixels with a normal."""
        return dict(cos=angular_terms(output, target))

    def prediction(self, output: Tensor) -> Tensor:
        """Unit vectors (B, 3, H, W)."""
        return unit_vectors(output)
