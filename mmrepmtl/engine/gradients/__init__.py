"""The way of the tasks' gradients: out of the graph, over ranks, through an aggregator, into ``.grad``.

In this order: ``from_graph`` takes them out, ``rows`` keeps those of the shared parameters and sums them over ranks,
``sums`` keeps the rest of an accumulation window, ``levels`` has the two algorithms, ``writing`` ends in ``.grad``.
"""

from .levels import Level, ParameterLevel, RepresentationLevel, level_of

__all__ = ['Level', 'ParameterLevel', 'RepresentationLevel', 'level_of']
