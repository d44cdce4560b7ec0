from mmrepmtl.datasets import transforms
from mmrepmtl.datasets.base import MultiTaskDataset
from mmrepmtl.datasets.nyuv2 import NYUv2Dataset
from mmrepmtl.datasets.samplers import EpochIndex, EpochInfiniteSampler, EpochSampler
from mmrepmtl.datasets.synth_rooms import SynthRoomsDataset

__all__ = [
    'EpochIndex', 'EpochInfiniteSampler', 'EpochSampler', 'MultiTaskDataset', 'NYUv2Dataset', 'SynthRoomsDataset',
    'transforms'
]
