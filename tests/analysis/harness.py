"""A batch of rendered rooms and a model without normalisation for it."""

import torch
from torch import Tensor, nn

from mmrepmtl.analysis.saliency_maps import (
    SaliencySettings,
)
from mmrepmtl.structures import MultiTaskDataSample
from tests.models.toy import build_model, make_images, make_sample

TASKS = ('semseg', 'depth', 'normal')
COUNT = 4
SETTINGS = SaliencySettings('encoder')


def batch(missing=()) -> tuple[list[Tensor], list[MultiTaskDataSample]]:
    images = list(make_images(range(COUNT), dtype=torch.float64))
    samples = [make_sample(index, missing=missing, dtype=torch.float64) for index in range(COUNT)]
    return images, samples


def toy(**arguments) -> nn.Module:
    return build_model(TASKS, **arguments).double()
