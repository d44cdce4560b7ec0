"""The settings that a run's numbers depend on, as plain data with a short hash."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config

from mmrepmtl.apis.splits import SPLITS
from mmrepmtl.utils.config_types import plain_data

# Places, pictures and logs; a checkpoint is written when it is due, which changes no number if the end has one.
_IGNORED = (
    'work_dir',
    'experiment_name',
    'data_root',
    'launcher',
    'resume',
    'log_level',
    'log_processor',
    'visualizer',
    'vis_backends',
    'default_scope',
    'custom_imports',
)
_IGNORED_HOOKS = ('logger', 'timer', 'visualization', 'checkpoint', 'task_gradients')
_OF_THE_LAST = ('interval', 'by_epoch', 'save_begin', 'save_last')
_IGNORED_OF_LOADERS = ('num_workers', 'persistent_workers', 'pin_memory', 'prefetch_factor')
_IGNORED_OF_DATA = ('data_root', 'cache_dir')


def settings_of(cfg: Config) -> dict[str, Any]:
    """The settings that a run's numbers depend on, in JSON's types.

    Left out are the folders of the run and of the data, what is logged and drawn, how often a checkpoint is written
    (unless ``save_last=False`` makes it decide which one is the last), and the workers of the loaders. Code that a
    config imports is not looked into.

    Args:
        cfg: As :func:`mmrepmtl.apis.load_config` makes it.
    """
    content = plain_data(cfg.to_dict())
    # A leading underscore: a part that the config file uses where it counts.
    content = {key: value for key, value in content.items() if key not in _IGNORED and not key.startswith('_')}
    hooks = content.get('default_hooks') or {}
    checkpoint = hooks.get('checkpoint') or {}
    for hook in _IGNORED_HOOKS:
        hooks.pop(hook, None)
    if checkpoint.get('save_last') is False:  # the last checkpoint, which is tested, is then not of the end
        hooks['checkpoint'] = {key: checkpoint[key] for key in _OF_THE_LAST if key in checkpoint}
    for split in SPLITS:
        loader = content.get(f'{split}_dataloader') or {}
        for key in _IGNORED_OF_LOADERS:
            loader.pop(key, None)
        _drop(loader.get('dataset'), _IGNORED_OF_DATA)
    heads = (content.get('model') or {}).get('heads')
    if isinstance(heads, Mapping):  # they are built, and draw their weights, in this order, which a sorted dict loses
        content['order_of_heads'] = list(heads)
    return content


def _drop(value: Any, keys: Sequence[str]) -> None:
    """Takes keys out of a data set and of those inside it."""
    if isinstance(value, dict):
        for key in keys:
            value.pop(key, None)
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            _drop(part, keys)


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that are equal for equal settings, in whichever order their keys are."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def differences(old: Mapping[str, Any], new: Mapping[str, Any], most: int = 5) -> str:
    """Says in which keys two settings differ: 'train_cfg.max_epochs was 2 and is 3; ...'."""
    before, after = dict(_flat(old)), dict(_flat(new))
    keys = [key for key in {**before, **after} if before.get(key, _ABSENT) != after.get(key, _ABSENT)]
    told = [f'{key} was {_told(before, key)} and is {_told(after, key)}' for key in keys[:most]]
    return '; '.join(told + ([f'and {len(keys) - most} more'] if len(keys) > most else []))


_ABSENT = object()


def _told(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else 'not set'


def _flat(value: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    if value and isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flat(part, f'{path}.{key}' if path else str(key))
    elif path:
        yield path, value
