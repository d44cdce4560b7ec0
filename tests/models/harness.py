"""A model of tasks that have samples of their own, and batches for it."""

import torch
from torch import nn

from mmrepmtl.registry import MODELS
from mmrepmtl.structures import MultiTaskDataSample

from .toy import make_images

TASKS = ('a', 'b', 'c')
NUM_CLASSES = 4


class NormEncoder(nn.Module):
    """BatchNorm, so that it matters which samples go through together; two levels if asked for."""

    def __init__(self, levels=1):
        super().__init__()
        self.levels = levels
        self.channels = [6] * levels
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.Tanh())

    def forward(self, images):
        features = self.layers(images)
        return features if self.levels == 1 else (features, features.square())


def build(mode, encoder=NormEncoder, neck=None):
    """Models of the same encoder have the same weights."""
    torch.manual_seed(0)
    heads = {task: dict(type='ClassificationHead', num_classes=NUM_CLASSES) for task in TASKS}
    model = dict(type='MultiTaskModel', encoder=encoder(), neck=neck, heads=heads, encoder_forward=mode)
    return MODELS.build(model).double()


def make_batch(owners):
    """One image per entry of ``owners``, labelled for that task only (or for the tasks of a tuple, or none)."""
    samples = []
    for index, tasks in enumerate(owners):
        sample = MultiTaskDataSample(metainfo=dict(sample_idx=index))
        for task in tasks if isinstance(tasks, tuple) else (tasks,):
            sample.set_target(task, torch.tensor(index % NUM_CLASSES))
        samples.append(sample)
    return make_images(range(len(owners)), (8, 8), torch.float64), samples
