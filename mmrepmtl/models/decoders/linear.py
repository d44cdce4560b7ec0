from collections.abc import Sequence

from torch import Tensor, nn

from mmrepmtl.registry import MODELS

from .base import Decoder


@MODELS.register_module()
class LinearDecoder(Decoder):
    """One vector per image: global average pooling where the representation is a map, then a linear layer.

    Args:
        in_channels, out_channels, in_index: See :class:`Decoder`.
        hidden_channels: Width of a hidden layer with ReLU, or None for none (the paper's Office networks).
        dropout: Probability before the last layer.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        out_channels: int,
        in_index: int = -1,
        hidden_channels: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(in_channels, out_channels, in_index)
        layers: list[nn.Module] = []
        channels = self.in_channels
        if hidden_channels is not None:
            layers += [nn.Linear(channels, hidden_channels), nn.ReLU(inplace=True)]
            channels = hidden_channels
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear(channels, out_channels))
        self.layers = nn.Sequential(*layers)

    def decode(self, level: Tensor) -> Tensor:
        """Maps (B, C, H, W) or (B, C) to (B, out_channels)."""
        return self.layers(level.mean(dim=(2, 3)) if level.ndim == 4 else level)
