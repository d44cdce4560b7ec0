from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmrepmtl.registry import MODELS
from mmrepmtl.structures.kinds import VOID

from ..losses import cross_entropy_terms
from .dense import DenseHead


@MODELS.register_module()
class SegmentationHead(DenseHead):
    """Semantic segmentation: cross-entropy over the pixels that are not void (255).

    Target (H, W) int64; raw output (B, num_classes, H, W) logits; prediction (H, W) int64.

    Args:
        num_classes: Number of classes, at most 255.
        decoder, in_channels, target, loss_weight: See :class:`TaskHead`.
        class_weight: Factor per class; the loss is divided by the sum of the pixels' factors. None for all 1.
    """

    kind = 'segmentation'
    class_weight: Tensor | None

    def __init__(
        self,
        num_classes: int,
        decoder: dict[str, Any] | nn.Module,
        in_channels: int | Sequence[int] | None = None,
        target: str | None = None,
        loss_weight: float = 1.0,
        class_weight: Sequence[float] | None = None,
    ) -> None:
        if not 0 < num_classes <= VOID:
            raise ValueError(f'SegmentationHead: num_classes={num_classes}; it must be 1 to {VOID} ({VOID} is void)')
        if class_weight is not None and len(class_weight) != num_classes:
            raise ValueError(f'SegmentationHead: {len(class_weight)} class weights for {num_classes} classes')
        super().__init__(decoder, num_classes, in_channels, target, loss_weight)
        weight = None if class_weight is None else torch.tensor(class_weight, dtype=torch.float32)
        self.register_buffer('class_weight', weight, persistent=False)

    def void_target(self, output: Tensor) -> Tensor:
        """(H, W) int64, void at every pixel."""
        return torch.full(output.shape[-2:], VOID, dtype=torch.int64, device=output.device)

    def compute_terms(self, output: Tensor, target: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """``ce`` over the labelled pixels."""
        weight = None if self.class_weight is None else self.class_weight.to(output)
        return dict(ce=cross_entropy_terms(output, target, VOID, weight))

    def prediction(self, output: Tensor) -> Tensor:
        """Logits (B, C, H, W) as class ids (B, H, W)."""
        return output.argmax(dim=1)
