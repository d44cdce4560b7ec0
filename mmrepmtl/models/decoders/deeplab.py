from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from mmrepmtl.registry import MODELS

from .base import Decoder


@MODELS.register_module()
class DeepLabDecoder(Decoder):
    """The decoder of the paper's dense networks: torchvision's DeepLabV3 head (ASPP, 3x3 convolution, 1x1).

    16.1 M parameters on 2048 channels. Source: Rep-MTL, appendix A; Chen et al., "Rethinking Atrous Convolution for
    Semantic Image Segmentation", arXiv 1706.05587.

    Args:
        in_channels, out_channels, in_index: See :class:`Decoder`.
        atrous_rates: Dilations of the three 3x3 branches.
        dropout: Probability after the projection of the branches.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        out_channels: int,
        in_index: int = -1,
        atrous_rates: Sequence[int] = (12, 24, 36),
        dropout: float = 0.5,
    ) -> None:
        super().__init__(in_channels, out_channels, in_index)
        self.layers = DeepLabHead(self.in_channels, out_channels, tuple(atrous_rates))
        for module in self.layers.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout

    def decode(self, level: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, out_channels, H, W).

        Raises:
            ValueError: A batch of one in training mode; the image-pooling branch has one value per channel then, which
                BatchNorm cannot normalise.
        """
        if self.training and level.shape[0] == 1:
            raise ValueError(
                'DeepLabDecoder cannot be trained with one sample per process (BatchNorm of the pooled '
                'branch): use a batch size of at least 2 and drop_last=True, or another decoder'
            )
        return self.layers(level)
