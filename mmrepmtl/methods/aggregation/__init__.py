from .base import Aggregator, GramianAggregator, gramian
from .pcgrad import PCGrad

__all__ = ['Aggregator', 'GramianAggregator', 'PCGrad', 'gramian']
