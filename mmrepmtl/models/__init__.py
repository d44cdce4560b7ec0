from .data_preprocessor import MultiTaskDataPreprocessor
from .decoders import ConvDecoder, Decoder, DeepLabDecoder, LinearDecoder, MMSegDecoder
from .encoders import TimmEncoder
from .heads import ClassificationHead, DenseHead, DepthHead, NormalHead, RegressionHead, SegmentationHead, TaskHead
from .multi_task_model import MultiTaskModel
from .necks import FPNNeck, GlobalPoolNeck, TaskSaliencyDecoder, ToMapNeck

__all__ = [
    'ClassificationHead',
    'ConvDecoder',
    'Decoder',
    'DeepLabDecoder',
    'DenseHead',
    'DepthHead',
    'FPNNeck',
    'GlobalPoolNeck',
    'LinearDecoder',
    'MMSegDecoder',
    'MultiTaskDataPreprocessor',
    'MultiTaskModel',
    'NormalHead',
    'RegressionHead',
    'SegmentationHead',
    'TaskHead',
    'TaskSaliencyDecoder',
    'TimmEncoder',
    'ToMapNeck',
]
