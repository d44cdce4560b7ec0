"""Builds a neck with what the model tells it, and refuses parts that do not fit each other."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mmrepmtl.registry import MODELS
from mmrepmtl.utils.config_types import find_type, type_name

from ..decoders import Decoder, MMSegDecoder

#: The attributes with which an encoder may describe its output.
_DECLARED = ('layout', 'grid', 'num_prefix_tokens')


def build_neck(
    config: Mapping[str, Any] | nn.Module, encoder: nn.Module, channels: Sequence[int], tasks: Sequence[str]
) -> nn.Module:
    """Builds a neck; a module is taken as it is.

    Its ``in_channels`` are ``channels``. A neck whose arguments name them also gets ``tasks``, and those of ``layout``,
    ``grid`` and ``num_prefix_tokens`` that the encoder has as attributes.

    Raises:
        ValueError: The config contradicts the encoder or the heads, or the neck cannot read the encoder's layout.
    """
    if isinstance(config, nn.Module):
        return config
    known = {key: getattr(encoder, key) for key in _DECLARED if hasattr(encoder, key)} | dict(tasks=tuple(tasks))
    kind = find_type(config.get('type'), MODELS)
    name = 'the neck' if kind is None else type_name(kind)
    taken = {} if kind is None else inspect.signature(kind).parameters
    layout = known.get('layout', 'NCHW')
    if layout != 'NCHW' and 'layout' not in taken:
        raise ValueError(
            f'MultiTaskModel: the encoder returns layout {layout!r}, which {name} does not read; set '
            "layout='NCHW' in the encoder"
        )
    facts = {key: value for key, value in known.items() if key in taken}
    for key, value in facts.items():
        given = config.get(key, value)
        if (tuple(given) if isinstance(given, (list, tuple)) else given) != value:
            raise ValueError(
                f'MultiTaskModel: {name} has {key}={given!r}, but {"the heads are" if key == "tasks" else "it is"} '
                f'{value!r}; leave it out'
            )
    return MODELS.build(config, default_args=dict(in_channels=channels, **facts))


def check_layout(encoder: nn.Module, neck: nn.Module | None, heads: Mapping[str, nn.Module]) -> None:
    """Raises ValueError where decoders that read (B, C, H, W) are put on an encoder that returns something else."""
    layout = getattr(encoder, 'layout', 'NCHW')
    if layout == 'NCHW' or neck is not None:
        return
    for task, head in heads.items():
        decoder = getattr(head, 'decoder', None)
        if isinstance(decoder, (Decoder, MMSegDecoder)):
            raise ValueError(
                f'MultiTaskModel: the encoder returns layout {layout!r}, but {type(decoder).__name__} of task {task!r} '
                "reads 'NCHW'; add neck=dict(type='ToMapNeck')"
            )
