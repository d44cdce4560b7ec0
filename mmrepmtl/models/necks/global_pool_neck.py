from collections.abc import Sequence

from torch import Tensor, nn

from mmrepmtl.registry import MODELS


@MODELS.register_module()
class GlobalPoolNeck(nn.Module):
    """The end of the paper's Office trunk: global average pooling, linear layer, BatchNorm, ReLU, dropout.

    With it the shared representation is (B, C): name it to the optim wrapper as ``shared='neck'``.

    Args:
        in_channels: Channels of the encoder's levels; filled in by the model.
        out_channels: Width of the linear layer; None stops after the pooling.
        dropout: Probability at the end.
        in_index: The level that is pooled where the encoder returns several.
        init_std: Standard deviation of the linear layer's initial weights; None is torch's own initialisation. The
            public code for Office has 0.005. (Its bias makes no difference: the BatchNorm takes it out.)
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        out_channels: int | None = 512,
        dropout: float = 0.5,
        in_index: int = -1,
        init_std: float | None = None,
    ) -> None:
        super().__init__()
        self.in_index = in_index
        channels = in_channels if isinstance(in_channels, int) else in_channels[in_index]
        self.channels = [channels if out_channels is None else out_channels]
        self.layers: nn.Module = nn.Identity()
        if out_channels is not None:
            linear = nn.Linear(channels, out_channels)
            self.layers = nn.Sequential(
                linear, nn.BatchNorm1d(out_channels), nn.ReLU(inplace=True), nn.Dropout(dropout)
            )
            if init_std is not None:
                nn.init.normal_(linear.weight, std=init_std)

    def forward(self, features: Tensor | Sequence[Tensor]) -> Tensor:
        """Maps (B, C, H, W), or a sequence of such levels, to (B, out_channels)."""
        level = features if isinstance(features, Tensor) else features[self.in_index]
        return self.layers(level.mean(dim=(2, 3)))
