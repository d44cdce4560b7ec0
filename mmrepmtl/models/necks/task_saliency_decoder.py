from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmrepmtl.registry import MODELS


@MODELS.register_module()
class TaskSaliencyDecoder(nn.Module):
    """Gives each task its own masked view of the representation. Not part of the Rep-MTL paper.

    A secondary summary of the paper describes such a decoder: attention masks per task, predicted from Z, multiply Z
    element-wise before each head, at a cost of 0.06 GFLOPs. The summary does not say how a mask is made. Here it is the
    product of a gate per position (1x1 convolution) and a gate per channel (global average, two linear layers); a gate
    is 2 sigmoid(x), with its last layer at zero: at the start every mask is 1, every view Z itself.

    The masks belong to the heads. Z is still the output of the encoder, so the optim wrapper is told
    ``shared='encoder'``.

    Args:
        in_channels: Channels of Z, or of its levels; filled in by the model.
        tasks: Names of the tasks; filled in by the model.
        reduction: Channels over the width of the hidden layer of the channel gate.

    Raises:
        ValueError: ``reduction`` below 1; in ``forward``, a representation other than maps (B, C, H, W).
    """

    def __init__(self, in_channels: int | Sequence[int], tasks: Sequence[str], reduction: int = 16) -> None:
        super().__init__()
        if reduction < 1:
            raise ValueError(f'TaskSaliencyDecoder: reduction must be at least 1, got {reduction}')
        self.channels = [in_channels] if isinstance(in_channels, int) else list(in_channels)
        self.gates = nn.ModuleDict(
            {task: nn.ModuleList(_Gates(width, reduction) for width in self.channels) for task in tasks}
        )

    def forward(self, features: Tensor | Sequence[Tensor]) -> dict[str, Tensor | tuple[Tensor, ...]]:
        """Maps Z (B, C, H, W), or a sequence of levels, to {task: its masked view, shaped like Z}."""
        masks = self.masks(features)
        if isinstance(features, Tensor):
            return {task: features * own[0] for task, own in masks.items()}
        return {
            task: tuple(level * mask for level, mask in zip(features, own, strict=True)) for task, own in masks.items()
        }

    def masks(self, features: Tensor | Sequence[Tensor]) -> dict[str, list[Tensor]]:
        """Predicts {task: one mask in (0, 4) per level, shaped like the level}."""
        levels = [features] if isinstance(features, Tensor) else list(features)
        for level, width in zip(levels, self.channels, strict=True):
            if level.dim() != 4 or level.shape[1] != width:
                raise ValueError(
                    f'TaskSaliencyDecoder: expected maps (B, {width}, H, W), got shape {tuple(level.shape)}'
                )
        pooled = [level.mean(dim=(2, 3)) for level in levels]
        gates_of_tasks: dict[str, Any] = dict(self.gates.items())
        return {
            task: [gates(level, mean) for gates, level, mean in zip(own, levels, pooled, strict=True)]
            for task, own in gates_of_tasks.items()
        }


class _Gates(nn.Module):
    """The mask of one task for one level."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(channels // reduction, 1)
        self.position = nn.Conv2d(channels, 1, 1)
        self.channel = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        for parameter in (*self.position.parameters(), *self.channel[-1].parameters()):
            nn.init.zeros_(parameter)

    def forward(self, level: Tensor, pooled: Tensor) -> Tensor:
        """(B, C, H, W) and its means (B, C) to the mask (B, C, H, W)."""
        position_B1HW = 2 * torch.sigmoid(self.position(level))
        channel_BC11 = 2 * torch.sigmoid(self.channel(pooled))[..., None, None]
        return position_B1HW * channel_BC11
