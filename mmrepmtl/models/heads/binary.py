from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmrepmtl.registry import MODELS
from mmrepmtl.structures.kinds import VOID

from ..losses import binary_terms
from .dense import DenseHead


@MODELS.register_module()
class BinaryHead(DenseHead):
    """A yes or no per pixel (saliency, edges): binary cross-entropy over the pixels that are not void (255).

    Target (H, W) int64, 0 or 1; raw output (B, 1, H, W) logits; prediction (H, W) probabilities.

    Args:
        decoder, in_channels, target, loss_weight: See :class:`TaskHead`.
        positive_weight: Factor w of the positive pixels' losses, in (0, 1); that of the others is 1 - w. 'balanced':
            each image's share of negative pixels. None: no weights. The loss is divided by the number of pixels.

    Raises:
        ValueError: ``positive_weight`` is something else.
    """

    kind = 'binary'

    def __init__(
        self,
        decoder: dict[str, Any] | nn.Module,
        in_channels: int | Sequence[int] | None = None,
        target: str | None = None,
        loss_weight: float = 1.0,
        positive_weight: float | str | None = None,
    ) -> None:
        is_number = isinstance(positive_weight, float) and 0 < positive_weight < 1
        if not is_number and positive_weight not in (None, 'balanced'):
            raise ValueError(
                f"BinaryHead: positive_weight={positive_weight!r}; give a number in (0, 1), 'balanced' or None"
            )
        super().__init__(decoder, 1, in_channels, target, loss_weight)
        self.positive_weight = positive_weight

    def void_target(self, output: Tensor) -> Tensor:
        """(H, W) int64, void at every pixel."""
        return torch.full(output.shape[-2:], VOID, dtype=torch.int64, device=output.device)

    def compute_terms(self, output: Tensor, target: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """``bce`` over the labelled pixels."""
        return dict(bce=binary_terms(output[:, 0], target, VOID, self.positive_weight))

    def prediction(self, output: Tensor) -> Tensor:
        """Logits (B, 1, H, W) as probabilities (B, H, W)."""
        return output[:, 0].sigmoid()
