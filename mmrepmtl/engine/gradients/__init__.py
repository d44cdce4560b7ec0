"""The tasks' gradients on their way from the graph through an aggregator into ``.grad``.

``from_graph`` computes them. ``rows`` keeps those of the shared parameters and sums them over ranks. ``sums`` keeps the
rest of an accumulation window. ``levels`` has the two algorithms on a common ``base``. ``writing`` writes the result to
``.grad``.
"""

from .base import Level
from .levels import ParameterLevel, RepresentationLevel, level_of

__all__ = ['Level', 'ParameterLevel', 'RepresentationLevel', 'level_of']
