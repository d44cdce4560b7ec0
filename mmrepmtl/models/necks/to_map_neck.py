from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmrepmtl.registry import MODELS

READOUTS = ('ignore', 'add')


@MODELS.register_module()
class ToMapNeck(nn.Module):
    """Turns tokens or channels-last maps into (B, C, H, W), which decoders read.

    With ``shared='encoder'`` Z is what the encoder returns, tokens for example; the heads begin with this neck, which
    has no weights. The model fills in ``in_channels``, and the rest of what the encoder declares.

    Args:
        in_channels: Channels of the encoder's levels.
        layout: ``'NCHW'`` (nothing to do), ``'NHWC'`` or ``'NLC'``.
        grid: (H, W) of the patches; ``'NLC'`` only.
        num_prefix_tokens: Tokens before those of the patches; ``'NLC'`` only.
        readout: The use of the prefix tokens: ``'ignore'``, or ``'add'``, which adds the first of them, the class
            token, to every position (DPT: Ranftl et al., "Vision Transformers for Dense Prediction", ICCV 2021).

    Raises:
        ValueError: Settings that contradict each other; in ``forward``, a level that has not the layout.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        layout: str,
        grid: Sequence[int] | None = None,
        num_prefix_tokens: int = 0,
        readout: str = 'ignore',
    ) -> None:
        super().__init__()
        if layout not in ('NCHW', 'NHWC', 'NLC'):
            raise ValueError(f"ToMapNeck: layout must be 'NCHW', 'NHWC' or 'NLC', got {layout!r}")
        if (layout == 'NLC') != (grid is not None):
            raise ValueError(f"ToMapNeck: grid=(H, W) of the patches goes with layout='NLC', got {layout!r} and {grid}")
        if num_prefix_tokens and layout != 'NLC':
            raise ValueError(f"ToMapNeck: num_prefix_tokens={num_prefix_tokens} needs layout='NLC', got {layout!r}")
        if readout not in READOUTS:
            raise ValueError(f'ToMapNeck: readout must be one of {READOUTS}, got {readout!r}')
        if readout == 'add' and not num_prefix_tokens:
            raise ValueError("ToMapNeck: readout='add' needs a class token, and num_prefix_tokens is 0")
        self.channels = [in_channels] if isinstance(in_channels, int) else list(in_channels)
        self.layout, self.num_prefix_tokens, self.readout = 'NCHW', 0, readout
        self._from, self._grid, self._prefix = layout, grid if grid is None else tuple(grid), num_prefix_tokens

    def forward(self, features: Tensor | Sequence[Tensor]) -> Tensor | tuple[Tensor, ...]:
        """Maps (B, H, W, C) or (B, prefix tokens + H W, C), or a sequence of such, to (B, C, H, W)."""
        if isinstance(features, Tensor):
            return self._to_map(features, self.channels[-1])
        return tuple(self._to_map(level, width) for level, width in zip(features, self.channels, strict=True))

    def _to_map(self, level: Tensor, channels: int) -> Tensor:
        axis = 1 if self._from == 'NCHW' else -1
        if level.dim() != (3 if self._from == 'NLC' else 4) or level.shape[axis] != channels:
            raise ValueError(
                f'ToMapNeck: expected a level of layout {self._from!r} with {channels} channels, got shape '
                f'{tuple(level.shape)}'
            )
        if self._from == 'NCHW':
            return level
        if self._from == 'NHWC':
            return level.permute(0, 3, 1, 2)
        assert self._grid is not None  # tokens without a grid were refused
        height, width = self._grid
        if level.shape[1] != self._prefix + height * width:
            raise ValueError(
                f'ToMapNeck: {self._prefix} prefix tokens and a grid of {height} x {width} patches are '
                f'{self._prefix + height * width} tokens, got {level.shape[1]}'
            )
        patches = level[:, self._prefix :]
        if self.readout == 'add':
            patches = patches + level[:, :1]
        return torch.unflatten(patches.transpose(1, 2), 2, self._grid)
