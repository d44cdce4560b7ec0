from .base import Aggregator, GramianAggregator
from .pcgrad import PCGrad

__all__ = ['Aggregator', 'GramianAggregator', 'PCGrad']
