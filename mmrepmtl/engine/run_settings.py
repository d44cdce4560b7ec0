"""The settings of a run, as plain data in its checkpoints; a resumed run is compared with them."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sized
from itertools import zip_longest
from typing import Any

import torch
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from mmrepmtl.methods.collectives import num_processes

SETTINGS = 'run_settings'
"""Key of a checkpoint: JSON text, which is never evaluated as code."""

PARAMETERS = 'parameters'
SECTIONS = (
    'model',
    'train_dataloader',
    'val_dataloader',
    'val_evaluator',
    'train_cfg',
    'val_cfg',
    'optim_wrapper',
    'param_scheduler',
    'auto_scale_lr',
    'randomness',
    'model_wrapper_cfg',
)
# Hooks that change no trained number.
PASSIVE_HOOKS = (
    'InterruptHook',
    'LogHistoryHook',
    'MetricsFileHook',
    'ProgressHook',
    'RanksHook',
    'ResumeHook',
    'SelectionHook',
    'TaskGradientsHook',
)
# Settings that change no trained number: speed, the log, and the weights that a resumed run replaces anyway.
WITHOUT_EFFECT = (
    'pin_memory',
    'prefetch_factor',
    'persistent_workers',
    'diagnostics_interval',
    'force_resume',
    'init_cfg',
    'pretrained',
    'checkpoint',
)
# Restored with the optimizer and the schedulers, so the new value has no effect.
RESTORED = (
    'lr',
    'weight_decay',
    'optim_wrapper.optimizer.',
    'optim_wrapper.optimizers.',
    'optim_wrapper.paramwise_cfg',
    'param_scheduler',
    'seed',
)
LISTED, LENGTH = 12, 160


def run_settings(runner: Runner) -> dict[str, Any]:
    """Collects the settings that change the numbers of a run, ``{dotted name: value}``, from its objects and config."""
    loop, loader = runner.train_loop, runner.train_dataloader
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    facts = dict(
        loop='epochs' if by_epoch else 'iterations',
        length=loop.max_epochs if by_epoch else loop.max_iters,
        processes=num_processes(),
        seed=runner.seed,
        **_loader_facts(loader),
        **_optimizer_facts(runner.optim_wrapper),
        **_parameter_names(runner),
    )
    sections = {key: runner.cfg.get(key) for key in SECTIONS}
    hooks = [hook for hook in runner.cfg.get('custom_hooks') or [] if isinstance(hook, Mapping)]
    for hook in hooks:
        name = _plain(hook.get('type'))
        if name not in PASSIVE_HOOKS:
            sections[f'custom_hooks.{name}'] = hook
    flat = dict(_flat(_plain(sections), ''))
    # The facts above have these, and have them without a config too.
    for key in ('randomness.seed', 'optim_wrapper.optimizer.lr', 'optim_wrapper.optimizer.weight_decay'):
        flat.pop(key, None)
    flat.pop('train_dataloader.batch_size', None)
    return {key: _plain(value) for key, value in facts.items()} | flat


def _loader_facts(loader: DataLoader[Any]) -> dict[str, Any]:
    facts: dict[str, Any] = dict(batch_size=loader.batch_size or getattr(loader.batch_sampler, 'batch_size', None))
    facts |= dict(samples=_length(loader.dataset), batches_per_epoch=_length(loader))
    # The length of an infinite sampler is no number of batches.
    if facts['batches_per_epoch'] and facts['samples'] and facts['batches_per_epoch'] > facts['samples']:
        facts['batches_per_epoch'] = None
    return facts


def _length(data: object) -> int | None:
    """The length; None for iterable data, which has none."""
    try:
        return len(data) if isinstance(data, Sized) else None
    except TypeError:
        return None


def _optimizer_facts(wrapper: OptimWrapper | OptimWrapperDict) -> dict[str, Any]:
    several = isinstance(wrapper, OptimWrapperDict)
    wrappers = dict(wrapper.items()) if several else {'': wrapper}
    # Learned weights of a method are in a group of their own, which may not exist before the first batch.
    learning = getattr(wrapper, 'weighting_optimizer', '') if getattr(wrapper, 'has_learned', False) else None
    facts: dict[str, Any] = {}
    for name, one in wrappers.items():
        groups = one.optimizer.param_groups
        if name == learning:
            groups = groups[:-1]
        end = f'.{name}' if name else ''
        facts[f'optimizer{end}'] = type(one.optimizer).__name__
        facts[f'lr{end}'] = _one_or_all(group.get('initial_lr', group.get('lr')) for group in groups)
        facts[f'weight_decay{end}'] = _one_or_all(group.get('weight_decay') for group in groups)
    return facts


def _parameter_names(runner: Runner) -> dict[str, list[str]]:
    """Lists the names of the model's parameters in the order in which each optimizer counts them."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    wrapper = runner.optim_wrapper
    wrappers = dict(wrapper.items()) if isinstance(wrapper, OptimWrapperDict) else {'': wrapper}
    return {
        f'{PARAMETERS}.{key}' if key else PARAMETERS: [
            names[id(parameter)]
            for group in one.optimizer.param_groups
            for parameter in group['params']
            if id(parameter) in names  # the others are learned weights of a method
        ]
        for key, one in wrappers.items()
    }


def check_order(runner: Runner, checkpoint: Mapping[str, Any], name: str) -> None:
    """Refuses a checkpoint whose optimizer counts other parameters, or the same in another order.

    The state of an optimizer is a list. If two heads of equal shapes changed places, each would get the state of the
    other in silence.

    Args:
        runner: The runner of the run that is to go on.
        checkpoint: The loaded checkpoint; an older one does not hold the order.
        name: Its name in messages.

    Raises:
        ValueError: If the order differs; names the first parameter that does.
    """
    old = _stored_settings(checkpoint) or {}
    for key, new in _parameter_names(runner).items():
        there = old.get(key, new)
        if there != new and isinstance(there, list):
            pairs = zip_longest(new, there, fillvalue='none')
            number, (now, then) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
            raise ValueError(
                f'{name} cannot be resumed by this config: parameter {number} of the optimizer is {now} now and was '
                f'{then}, so its state would go to others. Put the parts of the model back in their order, or start '
                'a new run from the weights with load_from'
            )


def _one_or_all(values: Iterable[Any]) -> Any:
    """Returns the value if all are equal, else the list of the different ones."""
    unique = list(dict.fromkeys(float(value) for value in values if value is not None))
    return unique[0] if len(unique) == 1 else unique


def _plain(value: Any) -> Any:
    """Converts a value to JSON's types; classes and functions become their names, as configs spell them too."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(part) for part in (sorted(value, key=str) if isinstance(value, set | frozenset) else value)]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if hasattr(value, 'tolist'):
        return _plain(value.tolist())
    if isinstance(value, torch.dtype):
        return str(value)
    return getattr(value, '__name__', type(value).__name__)


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yields (dotted name, value) of all leaves that have an effect."""
    parts: Iterable[tuple[Any, Any]] | None = None
    if isinstance(value, dict) and value:
        parts = value.items()
    elif isinstance(value, list) and any(isinstance(part, dict | list) for part in value):
        parts = enumerate(value)
    if parts is None:
        if name.rpartition('.')[2] not in WITHOUT_EFFECT and value is not None:
            yield name, value
        return
    for key, part in parts:
        if str(key) not in WITHOUT_EFFECT:
            yield from _flat(part, f'{name}.{key}' if name else str(key))


def compare_settings(runner: Runner, checkpoint: Mapping[str, Any], name: str) -> list[str]:
    """Compares a run with the one that wrote a checkpoint.

    Args:
        runner: The runner of the run that is to go on.
        checkpoint: The loaded checkpoint.
        name: Its name in messages.

    Returns:
        A sentence with both values for each setting that differs.

    Raises:
        ValueError: If the kind of loop or the optimizer differs, whose progress and state mean nothing to another.
    """
    old = _stored_settings(checkpoint)
    if old is None:
        return [f'{name} does not say what it was trained with, so the settings of this run are not compared with it']
    new = run_settings(runner)
    for key in sorted(new):
        if (key == 'loop' or key.partition('.')[0] == 'optimizer') and key in old and old[key] != new[key]:
            raise ValueError(
                f'{name} cannot be resumed by this config: {key} is {new[key]} now and was {old[key]}; put it back, or '
                'start a new run from the weights with load_from'
            )
    changed = [
        key
        for key in dict.fromkeys([*new, *old])
        if old.get(key) != new.get(key) and key.partition('.')[0] != PARAMETERS  # check_order compares these
    ]
    sentences = [f'{key} is {_short(new, key)} now and was {_short(old, key)}; {_effect(key)}' for key in changed]
    if len(sentences) > LISTED:
        rest = ', '.join(changed[LISTED:])
        sentences[LISTED:] = [f'{len(changed) - LISTED} more settings differ: {rest[:1000]}']
    return sentences


def _stored_settings(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        settings = json.loads(checkpoint[SETTINGS])
    except (KeyError, TypeError, ValueError):
        return None
    return settings if isinstance(settings, dict) else None


def _short(settings: Mapping[str, Any], key: str) -> str:
    text = str(settings[key]) if key in settings else 'not set'
    return text if len(text) <= LENGTH else f'{text[: LENGTH - 3]}...'


def _effect(key: str) -> str:
    """Says what a changed setting does to a resumed run."""
    if key == 'seed' or key.startswith('seed.'):
        return "the checkpoint's goes on"
    if key.startswith(RESTORED) or key in ('length',) or key.startswith('train_cfg'):
        return (
            'the schedule of the checkpoint goes on, and one that has ended stays ended. Use load_from to start a new '
            'schedule from these weights'
        )
    return 'the run goes on with the new value, and differs from then on from one that was not interrupted'
