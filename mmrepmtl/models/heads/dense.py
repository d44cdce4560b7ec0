from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmrepmtl.structures import MultiTaskDataSample

from .base import TaskHead, full_precision


class DenseHead(TaskHead):
    """Base of heads with one output per pixel.

    The decoder's output is resized to the network's input bilinearly with aligned corners, as in the paper's networks.
    """

    def forward(self, features: Tensor | Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Computes the raw output (B, out_channels, H, W) at ``size`` = (H, W)."""
        output = super().forward(features, size)
        with torch.autocast(output.device.type, enabled=False):
            return resize(output, size)

    def predict(self, output: Tensor, data_samples: Sequence[MultiTaskDataSample]) -> list[Tensor]:
        """Predicts at the size of the target, or of the unpadded image where there is no target.

        Padding (right and below, beyond the sample's ``img_shape``) is cut off before resizing.
        """
        output = full_precision(output)
        predictions = []
        for row, sample in zip(output, data_samples, strict=True):
            height, width = sample.get('img_shape', row.shape[-2:])
            row = row[None, :, :height, :width]
            if self.target_name in sample.targets:
                row = resize(row, sample.targets[self.target_name].shape[-2:])
            predictions.append(self.prediction(row)[0])
        return predictions

    def prediction(self, output: Tensor) -> Tensor:
        """Turns a raw output (1, out_channels, H, W) into the task's prediction."""
        return output


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear with aligned corners; ``maps`` (B, C, H, W) themselves where the size is right already."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode='bilinear', align_corners=True)
