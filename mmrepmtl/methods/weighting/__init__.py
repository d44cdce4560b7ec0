from .base import Weighting
from .dwa import DWA
from .equal import EqualWeighting
from .famo import FAMO
from .gls import GLS
from .go4align import GO4Align
from .igbv2 import IGBv2
from .imtl_l import IMTLL
from .rlw import RLW
from .stch import STCH
from .uncertainty import UncertaintyWeighting

__all__ = [
    'DWA',
    'EqualWeighting',
    'FAMO',
    'GLS',
    'GO4Align',
    'IGBv2',
    'IMTLL',
    'RLW',
    'STCH',
    'UncertaintyWeighting',
    'Weighting',
]
