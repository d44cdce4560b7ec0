from .base import Decoder
from .conv import ConvDecoder
from .deeplab import DeepLabDecoder
from .linear import LinearDecoder
from .mmseg import MMSegDecoder

__all__ = ['ConvDecoder', 'Decoder', 'DeepLabDecoder', 'LinearDecoder', 'MMSegDecoder']
