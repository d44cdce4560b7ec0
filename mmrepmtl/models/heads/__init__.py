from .base import TaskHead, full_precision
from .classification import ClassificationHead
from .dense import DenseHead
from .depth import DepthHead
from .normal import NormalHead
from .regression import RegressionHead
from .segmentation import SegmentationHead

__all__ = [
    'ClassificationHead', 'DenseHead', 'DepthHead', 'NormalHead', 'RegressionHead', 'SegmentationHead', 'TaskHead',
    'full_precision'
]
