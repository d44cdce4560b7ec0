"""A model of all kinds of tasks for pictures of 24 x 32 pixels, and pictures."""

from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
NETWORK_SIZE = (24, 32)
TARGETS = dict(
    semseg=dict(
        kind='segmentation',
        classes=('wall', 'floor', 'lamp'),
        palette=[[10, 20, 30], [200, 100, 50], [0, 250, 120]],
    ),
    boundary=dict(kind='binary'),
    depth=dict(kind='depth'),
    normal=dict(kind='normals'),
    kind=dict(kind='classification', classes=('kitchen', 'office', 'bath', 'hall')),
    pose=dict(kind='regression', names=('yaw', 'pitch', 'roll')),
)
CONFIG = """
default_scope = 'mmrepmtl'
_conv = dict(type='ConvDecoder', hidden_channels=8, num_convs=1)
model = dict(
    type='MultiTaskModel',
    data_preprocessor=dict(type='MultiTaskDataPreprocessor', mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
    encoder=dict(type='TimmEncoder', name='test_resnet', out_indices=(1,), checkpoint=None),
    heads=dict(
        semseg=dict(type='SegmentationHead', num_classes=3, decoder=_conv),
        edge=dict(type='BinaryHead', decoder=_conv, target='boundary'),
        depth=dict(type='DepthHead', decoder=_conv),
        normal=dict(type='NormalHead', decoder=_conv),
        kind=dict(type='ClassificationHead', num_classes=4),
        pose=dict(type='RegressionHead', num_values=3),
    ),
)
test_dataloader = dict(
    dataset=dict(type='SynthRoomsDataset', size=(24, 32), pipeline=[dict(type='PackMultiTaskInputs')]))
"""


def picture(size=(60, 90), seed=0) -> np.ndarray:
    """A smooth coloured picture, uint8 RGB."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[task], other[task]) for task in one)
