from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mmrepmtl.registry import MODELS


@MODELS.register_module()
class FPNNeck(nn.Module):
    """A feature pyramid: brings the encoder's levels to one width and adds the deep ones to the shallow ones.

    1x1 convolutions, then from deep to shallow the sum with the enlarged deeper level (nearest neighbour), then a 3x3
    convolution per returned level; no normalisation. Source: Lin et al., "Feature Pyramid Networks for Object
    Detection", CVPR 2017.

    With ``shared='encoder'`` Z is the encoder's levels, and the pyramid belongs to the heads; with ``shared='neck'`` Z
    is what the pyramid returns.

    Args:
        in_channels: Channels of the encoder's levels, shallow to deep; filled in by the model.
        out_channels: Width of all levels.
        out_indices: The levels that are returned, shallow to deep. One gives a map, several a tuple of them.

    Raises:
        ValueError: For a single level, or for an index of ``out_indices`` that no level has.
    """

    def __init__(
        self, in_channels: int | Sequence[int], out_channels: int = 256, out_indices: Sequence[int] = (0,)
    ) -> None:
        super().__init__()
        widths = [in_channels] if isinstance(in_channels, int) else list(in_channels)
        if len(widths) < 2:
            raise ValueError(
                f'FPNNeck merges several levels of the encoder, got channels {widths}; set out_indices of the encoder'
            )
        chosen = sorted(range(len(widths))[index] for index in out_indices if -len(widths) <= index < len(widths))
        if len(set(chosen)) != len(out_indices) or not chosen:
            raise ValueError(
                f'FPNNeck: out_indices={tuple(out_indices)} must name different ones of {len(widths)} levels'
            )
        self.out_indices = chosen
        self.channels = [out_channels] * len(chosen)
        self.lateral = nn.ModuleList(nn.Conv2d(width, out_channels, 1) for width in widths[chosen[0] :])
        self.smooth = nn.ModuleList(nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in chosen)

    def forward(self, features: Sequence[Tensor]) -> Tensor | tuple[Tensor, ...]:
        """Maps levels (B, C_i, H_i, W_i), shallow to deep, to (B, out_channels, H_i, W_i) of the returned ones."""
        first = self.out_indices[0]
        merged = [layer(level) for layer, level in zip(self.lateral, features[first:], strict=True)]
        for index in range(len(merged) - 2, -1, -1):
            merged[index] = merged[index] + F.interpolate(merged[index + 1], size=merged[index].shape[-2:])
        levels = [layer(merged[index - first]) for layer, index in zip(self.smooth, self.out_indices, strict=True)]
        return levels[0] if len(levels) == 1 else tuple(levels)
