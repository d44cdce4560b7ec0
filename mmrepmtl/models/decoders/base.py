from collections.abc import Sequence

from torch import Tensor, nn


class Decoder(nn.Module):
    """Base of decoders: the private layers of a task, from the shared representation to its raw output.

    Args:
        in_channels: Channels of the representation, or of each of its levels; filled in by the model.
        out_channels: Channels of the output; filled in by the head.
        in_index: The level that is read where the representation is several maps.
    """

    def __init__(self, in_channels: int | Sequence[int], out_channels: int, in_index: int = -1) -> None:
        super().__init__()
        levels = [in_channels] if isinstance(in_channels, int) else list(in_channels)
        if not -len(levels) <= in_index < len(levels):
            raise ValueError(
                f'{type(self).__name__}: in_index={in_index}, but the representation has {len(levels)} '
                f'level(s) with channels {levels}'
            )
        self.in_index = in_index
        self.in_channels = levels[in_index]
        self.out_channels = out_channels

    def forward(self, features: Tensor | Sequence[Tensor]) -> Tensor:
        """Decodes the representation.

        Args:
            features: (B, C, H, W) or (B, C), or a sequence of levels.
        """
        level = features if isinstance(features, Tensor) else features[self.in_index]
        return self.decode(level)

    def decode(self, level: Tensor) -> Tensor:
        """Decodes one level of the representation."""
        raise NotImplementedError
