"""Registers the methods; they themselves know nothing of registries (``mmrepmtl.methods`` is plain torch)."""

from collections.abc import Mapping

from mmengine.registry import Registry

from mmrepmtl.methods.aggregation import PCGrad
from mmrepmtl.methods.rep_mtl import RepMTL
from mmrepmtl.methods.weighting import EqualWeighting, UncertaintyWeighting
from mmrepmtl.registry import AGGREGATORS, REGULARIZERS, WEIGHTINGS

for _registry, _classes in (
    (WEIGHTINGS, (EqualWeighting, UncertaintyWeighting)),
    (AGGREGATORS, (PCGrad,)),
    (REGULARIZERS, (RepMTL,)),
):
    for _class in _classes:
        _registry.register_module(module=_class)


def build_method(cfg, registry: Registry):
    """The method of a config; an object (or None) is returned as it is."""
    return registry.build(dict(cfg)) if isinstance(cfg, Mapping) else cfg
