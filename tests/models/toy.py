"""Small models and pseudo batches for the tests of the models."""

import math

import torch
from torch import Tensor, nn

from mmrepmtl.registry import MODELS
from mmrepmtl.structures import MultiTaskDataSample

ALL_TASKS = ('semseg', 'depth', 'normal', 'kind', 'pose')
NUM_CLASSES = 5


class PlainEncoder(nn.Module):
    """Stride 4, no normalisation and no dropout, so that batches can be split exactly."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.channels = [channels]
        self.layers = nn.Sequential(nn.Conv2d(3, channels, 3, 2, 1), nn.Tanh(), nn.Conv2d(channels, channels, 3, 2, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def head_configs(tasks=ALL_TASKS) -> dict[str, dict]:
    conv = dict(type='ConvDecoder', hidden_channels=8, num_convs=1, norm=None)
    heads = dict(
        semseg=dict(type='SegmentationHead', num_classes=NUM_CLASSES, decoder=conv),
        depth=dict(type='DepthHead', decoder=conv),
        normal=dict(type='NormalHead', decoder=conv),
        kind=dict(type='ClassificationHead', num_classes=4),
        pose=dict(type='RegressionHead', num_values=3, loss='mse'),
    )
    return {task: heads[task] for task in tasks}


def build_model(tasks=ALL_TASKS, seed: int = 0, **arguments) -> nn.Module:
    torch.manual_seed(seed)
    return MODELS.build(
        dict(
            type='MultiTaskModel',
            encoder=arguments.pop('encoder', None) or PlainEncoder(),
            heads=head_configs(tasks),
            **arguments,
        )
    )


def make_sample(index: int, size=(16, 24), missing=(), dtype=torch.float32) -> MultiTaskDataSample:
    """A random sample; the number of valid pixels depends on ``index``."""
    generator = torch.Generator().manual_seed(100 + index)
    height, width = size
    holes = torch.rand(size, generator=generator) < 0.1 + 0.2 * (index % 4)
    semseg = torch.randint(0, NUM_CLASSES, size, generator=generator)
    depth = 1 + torch.rand(1, height, width, generator=generator, dtype=dtype)
    normal = nn.functional.normalize(torch.randn(3, height, width, generator=generator, dtype=dtype), dim=0)
    pose = torch.randn(3, generator=generator, dtype=dtype)
    pose[index % 3] = math.nan
    targets = dict(
        semseg=semseg.masked_fill(holes, 255),
        depth=depth.masked_fill(holes, 0),
        normal=normal.masked_fill(holes, 0),
        kind=torch.tensor(index % 4),
        pose=pose,
    )
    sample = MultiTaskDataSample(metainfo=dict(sample_idx=index, img_shape=size, ori_shape=size))
    for name, target in targets.items():
        if name not in missing:
            sample.set_target(name, target)
    return sample


def make_images(indices, size=(16, 24), dtype=torch.float32) -> Tensor:
    return torch.stack(
        [torch.rand(3, *size, generator=torch.Generator().manual_seed(index), dtype=dtype) for index in indices]
    )
