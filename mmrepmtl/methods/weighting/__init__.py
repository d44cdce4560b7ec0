from .base import Weighting
from .equal import EqualWeighting
from .uncertainty import UncertaintyWeighting

__all__ = ['EqualWeighting', 'UncertaintyWeighting', 'Weighting']
