from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmrepmtl.registry import MODELS
from mmrepmtl.structures import MultiTaskDataSample

from ..losses import cross_entropy_terms
from .base import TaskHead, full_precision

_UNLABELLED = -1


@MODELS.register_module()
class ClassificationHead(TaskHead):
    """One class per image: cross-entropy over the labelled images.

    Target () int64; raw output (B, num_classes) logits; prediction (num_classes,) probabilities.

    Args:
        num_classes: Number of classes.
        decoder, in_channels, target, loss_weight: See :class:`TaskHead`.
    """

    kind = 'classification'

    def __init__(
        self,
        num_classes: int,
        decoder: dict[str, Any] | nn.Module | None = None,
        in_channels: int | Sequence[int] | None = None,
        target: str | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        decoder = dict(type='mmrepmtl.LinearDecoder') if decoder is None else decoder
        super().__init__(decoder, num_classes, in_channels, target, loss_weight)

    def void_target(self, output: Tensor) -> Tensor:
        """The label of no class, an int64 scalar."""
        return torch.tensor(_UNLABELLED, device=output.device)

    def compute_terms(self, output: Tensor, target: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """``ce`` over the labelled images."""
        return dict(ce=cross_entropy_terms(output, target, _UNLABELLED))

    def predict(self, output: Tensor, data_samples: Sequence[MultiTaskDataSample]) -> list[Tensor]:
        """The probabilities (K,) of each image."""
        return list(full_precision(output).softmax(dim=1))
