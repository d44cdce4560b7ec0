from .data_preprocessor import MultiTaskDataPreprocessor
from .decoders import ConvDecoder, Decoder, DeepLabDecoder, LinearDecoder
from .encoders import TimmEncoder
from .heads import ClassificationHead, DenseHead, DepthHead, NormalHead, RegressionHead, SegmentationHead, TaskHead
from .multi_task_model import MultiTaskModel
from .necks import GlobalPoolNeck

__all__ = [
    'ClassificationHead', 'ConvDecoder', 'Decoder', 'DeepLabDecoder', 'DenseHead', 'DepthHead', 'GlobalPoolNeck',
    'LinearDecoder', 'MultiTaskDataPreprocessor', 'MultiTaskModel', 'NormalHead', 'RegressionHead', 'SegmentationHead',
    'TaskHead', 'TimmEncoder'
]
