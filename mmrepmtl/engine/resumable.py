"""Checks that a checkpoint holds all that a run needs to go on, and that it fits the run."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from mmengine.hooks import EMAHook
from mmengine.logging import HistoryBuffer
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor

from mmrepmtl.engine.random_state import is_random_state

NEEDED = dict(meta='progress', state_dict='weights', message_hub='log', optimizer='state of the optimizer')

OUTLINE = 'optimizer_outline'
"""Key of a checkpoint: JSON text of :func:`outline`."""


def outline(state: Any) -> dict[str, str]:
    """Lists the tensors of an optimizer's state, ``{path: 'dtype shape'}``; a lost one would begin anew in silence."""
    return {path: f'{value.dtype} {tuple(value.shape)}' for path, value in _tensors(state, '')}


def _tensors(state: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(state, Tensor):
        yield path, state
    elif isinstance(state, Mapping | list | tuple):
        items: Iterable[tuple[Any, Any]] = state.items() if isinstance(state, Mapping) else enumerate(state)
        for key, value in items:
            yield from _tensors(value, f'{path}.{key}' if path else str(key))


def check_complete(checkpoint: Mapping[str, Any], name: str | Path) -> None:
    """Refuses to resume from a file that holds weights only, or less.

    Args:
        checkpoint: The loaded checkpoint.
        name: Its name in messages.

    Raises:
        ValueError: If parts are missing or damaged; names them, and says what can be done with the file.
    """
    missing = [f'{what} ({key})' for key, what in NEEDED.items() if not isinstance(checkpoint.get(key), Mapping)]
    if not missing and not checkpoint['state_dict']:
        missing = ['weights (state_dict is empty)']
    if not missing:
        progress = [checkpoint['meta'].get(key) for key in ('epoch', 'iter')]
        if not all(isinstance(number, int) and number >= 0 for number in progress):
            missing = ['epoch and iteration (meta)']
        elif not isinstance(checkpoint['message_hub'].get('log_scalars'), Mapping):
            missing = ['log (message_hub)']
    if missing:
        usable = isinstance(checkpoint.get('state_dict'), Mapping) and bool(checkpoint['state_dict'])
        raise ValueError(
            f'{name} cannot be resumed: it holds no {", no ".join(missing)}. '
            + (
                f'To start a new run from its weights, use load_from (--cfg-options load_from={name})'
                if usable
                else 'Resume another checkpoint'
            )
        )
    damaged = _damaged(checkpoint)
    if damaged:
        raise ValueError(f'{name} cannot be resumed: it is damaged in {", ".join(damaged)}. Resume another checkpoint')


def _damaged(checkpoint: Mapping[str, Any]) -> list[str]:
    """Names the parts of a checkpoint that have not the form or the range that they are written with."""
    meta, hub, states = checkpoint['meta'], checkpoint['message_hub'], checkpoint.get('random_states', [])
    position, method = checkpoint.get('position'), checkpoint['optimizer'].get('multi_task')
    good = {
        'meta.seed': meta.get('seed') is None or _is_number(meta['seed']),
        'message_hub.log_scalars': all(map(_is_buffer, hub['log_scalars'].values())),
        'message_hub.runtime_info': isinstance(hub.get('runtime_info'), Mapping),
        'message_hub.resumed_keys': isinstance(hub.get('resumed_keys'), Mapping),
        'random_states': isinstance(states, list | tuple) and all(map(is_random_state, states)),
        'position': position is None or _is_position(position),
        'optimizer.multi_task': method is None or (isinstance(method, Mapping) and 'signature' in method),
    }
    parts = [part for part, is_good in good.items() if not is_good]
    # mmengine's log has counters of its own. They are one behind, or equal after an interrupted validation.
    logged = {} if 'message_hub.runtime_info' in parts else hub['runtime_info']
    return parts + [
        f'meta.{key} ({meta[key]}, and {logged[key]} in its log)'
        for key in ('epoch', 'iter')
        if _is_number(logged.get(key)) and meta[key] - logged[key] not in (0, 1)
    ]


def _is_number(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and 0 <= value < 2**32


def _is_buffer(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return isinstance(value, HistoryBuffer)
    log, count = value.get('log'), value.get('count')
    if not isinstance(log, Tensor) or not isinstance(count, Tensor):
        return False
    return log.ndim == 1 and log.shape == count.shape and _is_number(value.get('max_length'))


def _is_position(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    batches, length = value.get('batches'), value.get('epoch_length')
    return _is_number(batches) and _is_number(length) and batches <= length


def check_fits(runner: Runner, checkpoint: Mapping[str, Any], name: str | Path) -> None:
    """Refuses a checkpoint of another model, optimizer or schedule; mmengine would load the parts that fit.

    Args:
        runner: The runner of the run that is to go on, with its model, optimizer and schedulers.
        checkpoint: A complete one (:func:`check_complete`).
        name: Its name in messages.

    Raises:
        ValueError: If it does not fit; names the differences.
    """
    misfits = [
        *_weight_misfits(runner, checkpoint),
        *_optimizer_misfits(runner, checkpoint['optimizer']),
        *_scheduler_misfits(runner, checkpoint),
        *_average_misfits(runner, checkpoint),
    ]
    misfits = misfits or _lost_state(checkpoint)
    if misfits:
        raise ValueError(
            f'{name} cannot be resumed by this config: {"; ".join(misfits)}. Put the config back as it was, or start a '
            'new run from the weights with load_from'
        )


def _weight_misfits(runner: Runner, checkpoint: Mapping[str, Any]) -> list[str]:
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    wanted = model.state_dict()
    found = {key.removeprefix('module.'): value for key, value in checkpoint['state_dict'].items()}
    misfits = []
    missing, unexpected = [[key for key in a if key not in b] for a, b in ((wanted, found), (found, wanted))]
    for keys, what in ((missing, 'it lacks'), (unexpected, 'the model lacks')):
        if keys:
            misfits.append(f'{what} the weights of {_parts(keys)}')
    shapes = [
        f'{key} has shape {tuple(found[key].shape)} there and {tuple(value.shape)} in the model'
        for key, value in wanted.items()
        if isinstance(value, Tensor) and isinstance(found.get(key), Tensor) and found[key].shape != value.shape
    ]
    kinds = [
        f'{key} is {found[key].dtype if isinstance(found[key], Tensor) else type(found[key]).__name__} there and '
        f'{value.dtype} in the model'
        for key, value in wanted.items()
        if isinstance(value, Tensor) and key in found and getattr(found[key], 'dtype', None) != value.dtype
    ]
    if kinds:
        misfits.append(_listed(kinds))
    return misfits + shapes[:3] + ([f'{len(shapes) - 3} more shapes differ'] if len(shapes) > 3 else [])


def _lost_state(checkpoint: Mapping[str, Any]) -> list[str]:
    try:
        there = dict(json.loads(checkpoint[OUTLINE]))
    except (KeyError, TypeError, ValueError):
        return []  # an older checkpoint
    found = outline(checkpoint['optimizer'])
    changed = [
        f'{key} is {found.get(key, "missing")} and was {there.get(key, "not there")}'
        for key in dict.fromkeys([*there, *found])
        if found.get(key) != there.get(key)
    ]
    return [f'the state of its optimizer is not the one that was saved ({_listed(changed)})'] if changed else []


def _listed(texts: Sequence[str]) -> str:
    return '; '.join(texts[:3]) + (f'; {len(texts) - 3} more differ' if len(texts) > 3 else '')


def _parts(keys: Sequence[str]) -> str:
    """Names heads by their names, everything else by its first weights."""
    heads = dict.fromkeys(key.split('.')[1] for key in keys if key.startswith('heads.') and key.count('.') > 1)
    others = [key for key in keys if not key.startswith('heads.')]
    parts = [f'the head {head!r}' for head in heads] + others[:3]
    return ', '.join(parts) + (f' and {len(others) - 3} more' if len(others) > 3 else '')


def _optimizer_misfits(runner: Runner, states: Mapping[str, Any]) -> list[str]:
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, OptimWrapper) and not isinstance(wrapper, OptimWrapperDict):
        if 'param_groups' not in states:
            return [f'it was trained with several optimizers ({", ".join(map(str, states))}), this run has one']
        return _group_misfits(wrapper, states, 'the optimizer')
    if 'param_groups' in states:
        return ['it was trained with one optimizer, this run has several']
    wanted = dict(wrapper.items())
    # MultiTaskOptimWrapperDict keeps the states of its method and scaler beside those of its optimizers.
    states = {key: state for key, state in states.items() if key not in ('multi_task', 'loss_scaler')}
    if set(wanted) != set(states):
        return [f'its optimizers are {", ".join(map(str, states))}, those of this run {", ".join(wanted)}']
    learning = getattr(wrapper, 'weighting_optimizer', None)
    return [
        text
        for key, one in wanted.items()
        for text in _group_misfits(one, states[key], f'the optimizer {key!r}', learns=key == learning)
    ]


def _group_misfits(wrapper: OptimWrapper, state: Mapping[str, Any], name: str, learns: bool = False) -> list[str]:
    if hasattr(wrapper, 'signature') or learns:
        # Learned weights of a method are a group of their own, which the wrapper compares.
        return []
    there = [len(group['params']) for group in state['param_groups']]
    here = [len(group['params']) for group in wrapper.optimizer.param_groups]
    if there == here:
        return []
    return [f'{name} had {_count(there)}, and has {_count(here)} now']


def _count(groups: Sequence[int]) -> str:
    return f'{sum(groups)} parameters in {len(groups)} group{"s" if len(groups) != 1 else ""}'


def _scheduler_misfits(runner: Runner, checkpoint: Mapping[str, Any]) -> list[str]:
    here, there = runner.param_schedulers, checkpoint.get('param_schedulers')
    if not here:
        return []
    if there is None:
        return ['it holds no state of a schedule (param_schedulers), this run has one']
    pairs = {key: (here[key], there.get(key, [])) for key in here} if isinstance(here, dict) else {'': (here, there)}
    return [
        f'param_scheduler{f" of {key}" if key else ""} had {len(old)} parts, and has {len(new)} now'
        for key, (new, old) in pairs.items()
        if len(new) != len(old)
    ]


def _average_misfits(runner: Runner, checkpoint: Mapping[str, Any]) -> list[str]:
    if 'ema_state_dict' in checkpoint and not any(isinstance(hook, EMAHook) for hook in runner.hooks):
        return ['it was trained with EMAHook and holds averaged weights, this run has no EMAHook']
    return []
