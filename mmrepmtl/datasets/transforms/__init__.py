from mmrepmtl.datasets.transforms.formatting import PackMultiTaskInputs
from mmrepmtl.datasets.transforms.geometric import PadMultiTask, RandomFlip, RandomZoom, ResizeMultiTask
from mmrepmtl.datasets.transforms.photometric import PhotometricJitter

__all__ = ['PackMultiTaskInputs', 'PadMultiTask', 'PhotometricJitter', 'RandomFlip', 'RandomZoom', 'ResizeMultiTask']
