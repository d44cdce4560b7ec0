from .base import TaskHead, full_precision
from .binary import BinaryHead
from .classification import ClassificationHead
from .dense import DenseHead
from .depth import DepthHead
from .normal import NormalHead
from .regression import RegressionHead
from .segmentation import SegmentationHead

__all__ = [
    'BinaryHead',
    'ClassificationHead',
    'DenseHead',
    'DepthHead',
    'NormalHead',
    'RegressionHead',
    'SegmentationHead',
    'TaskHead',
    'full_precision',
]
