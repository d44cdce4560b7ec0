from collections.abc import Sequence

from torch import Tensor, nn

from mmrepmtl.registry import MODELS

from .base import Decoder


@MODELS.register_module()
class ConvDecoder(Decoder):
    """A light dense decoder: a few 3x3 convolutions and a 1x1 one, at the resolution of the representation.

    Args:
        in_channels, out_channels, in_index: See :class:`Decoder`.
        hidden_channels: Channels of the 3x3 convolutions.
        num_convs: Number of 3x3 convolutions; 0 leaves the 1x1 one.
        norm: ``'BN'``, ``'GN'`` (8 channels per group, or one group where that does not divide) or None. The
            representation's gradient sums to nearly zero over the batch below a convolution with BatchNorm, which
            weakens the anchors of CSA in small batches; GN and None do not depend on the batch.
        dropout: Probability before the last convolution.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        out_channels: int,
        in_index: int = -1,
        hidden_channels: int = 128,
        num_convs: int = 2,
        norm: str | None = 'BN',
        dropout: float = 0.0,
    ) -> None:
        super().__init__(in_channels, out_channels, in_index)
        layers: list[nn.Module] = []
        channels = self.in_channels
        for _ in range(num_convs):
            layers += [
                nn.Conv2d(channels, hidden_channels, 3, padding=1, bias=norm is None),
                *_norm_layers(norm, hidden_channels),
                nn.ReLU(inplace=True),
            ]
            channels = hidden_channels
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
        layers.append(nn.Conv2d(channels, out_channels, 1))
        self.layers = nn.Sequential(*layers)

    def decode(self, level: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, out_channels, H, W)."""
        return self.layers(level)


def _norm_layers(norm: str | None, channels: int) -> list[nn.Module]:
    if norm is None:
        return []
    if norm == 'BN':
        return [nn.BatchNorm2d(channels)]
    if norm == 'GN':
        return [nn.GroupNorm(channels // 8 if channels % 8 == 0 else 1, channels)]
    raise ValueError(f"ConvDecoder: norm={norm!r} is unknown; use 'BN', 'GN' or None")
