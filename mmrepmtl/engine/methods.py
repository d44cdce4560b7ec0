"""Registers, builds and sets up the methods, which are plain torch and know no registry themselves."""

from collections.abc import Collection, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from mmengine.registry import Registry
from torch import nn

from mmrepmtl.methods import aggregation, weighting
from mmrepmtl.methods.aggregation import Aggregator, GramianAggregator
from mmrepmtl.methods.regularizer import Regularizer
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


def build_method(cfg: Mapping[str, Any] | nn.Module | None, registry: Registry) -> Any:
    """Builds the method of a config; an object, or None, is returned as it is."""
    return registry.build(dict(cfg)) if isinstance(cfg, Mapping) else cfg


def setup_methods(
    tasks: Collection[str],
    device: torch.device,
    weighting: Weighting,
    aggregator: Aggregator | None,
    regularizers: Sequence[Regularizer],
) -> None:
    """Tells weighting and aggregator their tasks, and moves all methods to the device of the model."""
    for method in (weighting, aggregator):
        if method is not None:
            method.task_names = list(tasks)
            method.setup(len(tasks))
    for module in (weighting, aggregator, *regularizers):
        if module is not None:
            module.to(device)
