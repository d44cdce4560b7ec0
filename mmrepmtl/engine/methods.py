"""Registers the methods; they themselves know nothing of registries (``mmrepmtl.methods`` is plain torch)."""

from collections.abc import Mapping
from types import ModuleType

from mmengine.registry import Registry

from mmrepmtl.methods import aggregation, weighting
from mmrepmtl.methods.aggregation import Aggregator, GramianAggregator
from mmrepmtl.methods.rep_mtl import RepMTL
from mmrepmtl.methods.weighting import Weighting
from mmrepmtl.registry import AGGREGATORS, REGULARIZERS, WEIGHTINGS


def _register(registry: Registry, package: ModuleType, bases: tuple[type, ...]) -> None:
    """Registers every method that a package exports."""
    for name in package.__all__:
        kind = getattr(package, name)
        if isinstance(kind, type) and issubclass(kind, bases[0]) and kind not in bases:
            registry.register_module(module=kind)


_register(WEIGHTINGS, weighting, (Weighting,))
_register(AGGREGATORS, aggregation, (Aggregator, GramianAggregator))
REGULARIZERS.register_module(module=RepMTL)


def build_method(cfg, registry: Registry):
    """The method of a config; an object (or None) is returned as it is."""
    return registry.build(dict(cfg)) if isinstance(cfg, Mapping) else cfg
