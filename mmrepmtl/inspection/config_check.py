"""Compares the parts of a config that must agree: heads, metrics, data sets and loaders."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from mmrepmtl.apis.splits import listed_metrics
from mmrepmtl.registry import METRICS, MODELS
from mmrepmtl.structures import KINDS
from mmrepmtl.utils.config_types import find_type, type_name

Targets = Mapping[str, Mapping[str, Any]]
"""``metainfo['targets']``: {name: its declaration}."""

# The parts of a declaration that the number and meaning of a network's outputs depend on.
MEANING = ('kind', 'classes', 'names', 'inverse')


def check_links(cfg: Config, targets: Mapping[str, Targets]) -> tuple[list[str], list[str]]:
    """Compares heads and metrics with the targets of the data sets, and the data sets with each other.

    Args:
        cfg: The config.
        targets: {'train', 'val', 'test': targets of the data set}, of the splits that are there.

    Returns:
        tuple: Defects and notes, one sentence each.
    """
    heads = _heads(cfg)
    notes: list[str] = []
    if heads is None:
        notes.append('the model has no dict of heads, so what they need is not compared with the data')
    defects = [] if heads is None or 'train' not in targets else list(_check_heads(heads, targets['train']))
    used = {head.get('target') or task for task, head in (heads or {}).items()}
    if heads:
        unused = [name for name in targets.get('train', {}) if name not in used]
        notes += [f'train: no head reads the target {name!r}; leave it out with targets=[...]' for name in unused]
    for split in ('val', 'test'):
        metrics = listed_metrics(cfg.get(f'{split}_evaluator'))
        if not metrics or split not in targets:
            continue
        for sentence in _check_metrics(metrics, heads, targets[split], notes, split):
            defects.append(f'{split}: {sentence}')
    for split in ('val', 'test'):
        if 'train' in targets and split in targets:
            defects += list(_compare(targets['train'], targets[split], split))
    return list(dict.fromkeys(defects)), list(dict.fromkeys(notes))


def check_loader(loader: Mapping[str, Any], dataset: Any, split: str) -> tuple[list[str], list[str]]:
    """Compares a loader's settings with the size of its data set, for one process.

    Returns:
        tuple: Defects and notes, one sentence each.
    """
    if split != 'train':
        if loader.get('drop_last'):
            return [f'{split}: drop_last leaves samples out of the metrics; remove it from {split}_dataloader'], []
        return [], []
    settings = dict(loader, dataset=dataset, num_workers=0, persistent_workers=False)
    for option in ('prefetch_factor', 'worker_init_fn', 'timeout', 'multiprocessing_context'):
        settings.pop(option, None)
    try:
        batches = len(Runner.build_dataloader(settings, seed=0))
    except (ValueError, TypeError) as error:
        return [f'train: the loader cannot be built: {error}'], []
    size = loader.get('batch_size', 1)
    if not batches:
        return [f'train: {len(dataset)} samples are fewer than a batch of {size}, and drop_last leaves them out'], []
    notes = [f'train: {batches} iterations per epoch on one process']
    if not loader.get('batch_sampler') and not loader.get('drop_last') and len(dataset) % size == 1 < size:
        notes.append(
            f'train: the last batch of an epoch holds one sample, of which BatchNorm after global pooling cannot take '
            f'statistics; set drop_last=True or another batch size than {size}'
        )
    return [], notes


def _heads(cfg: Config) -> dict[str, Mapping] | None:
    heads = (cfg.get('model') or {}).get('heads')
    return dict(heads) if isinstance(heads, Mapping) else None


def _kind_of(head: Mapping) -> tuple[str | None, Callable | None]:
    cls = find_type(head.get('type', ''), MODELS)
    return getattr(cls, 'kind', None), cls


def _check_heads(heads: Mapping[str, Mapping], targets: Targets) -> Iterator[str]:
    for task, head in heads.items():
        name = head.get('target') or task
        if name not in targets:
            yield (
                f'head {task!r}: the training data has no target {name!r}, only {_listed(targets)}, so the task would '
                'train as never labelled; set target=... in the head'
            )
            continue
        kind, cls = _kind_of(head)
        if kind is None:
            continue
        if targets[name]['kind'] != kind:
            yield (
                f'head {task!r}: {type_name(cls)} learns targets of kind {kind!r}, but {name!r} of the training data '
                f'is of kind {targets[name]["kind"]!r}'
            )
        elif kind in KINDS and (option := KINDS[kind].count):
            key = KINDS[kind].names
            assert cls is not None and key is not None  # which have a kind and a count of names
            parameter = inspect.signature(cls).parameters.get(option)
            number, there = head.get(option, getattr(parameter, 'default', None)), len(targets[name][key])
            # A head of a user's own may find out the number in another way.
            if number != there and (parameter or option in head):
                yield f'head {task!r}: {option}={number}, but {name!r} of the training data has {there} {key}'


def _check_metrics(
    metrics: Sequence[Mapping], heads: Mapping | None, targets: Targets, notes: list[str], split: str
) -> Iterator[str]:
    evaluated = set()
    for metric in metrics:
        task = metric.get('task')
        if task is None:
            continue
        evaluated.add(task)
        cls = find_type(metric['type'], METRICS)
        label = f'{type_name(metric["type"])} of {task!r}'
        if heads is not None and task not in heads:
            yield f'{label}: the model has no such task, only {_listed(heads)}'
        name = metric.get('target') or task
        if name not in targets:
            yield f'{label}: the data set has no target {name!r}, only {_listed(targets)}; set target=... in the metric'
            continue
        kind = targets[name]['kind']
        evaluates = getattr(cls, 'kind', kind)
        if evaluates != kind:
            yield f'{label}: it evaluates targets of kind {evaluates!r}, but {name!r} is of kind {kind!r}'
        elif metric.get('num_classes') not in (None, len(targets[name].get('classes', ()))):
            there = len(targets[name].get('classes', ()))
            yield f'{label}: num_classes={metric["num_classes"]}, but {name!r} has {there} classes'
        learned = (heads or {}).get(task, {}).get('target') or task
        if learned != name:
            notes.append(f'{split}: {label} compares with {name!r}, but its head learns {learned!r}')
    notes += [f'{split}: no metric evaluates the task {task!r}' for task in heads or {} if task not in evaluated]


def _compare(train: Targets, other: Targets, split: str) -> Iterator[str]:
    """Targets of one name that mean something else in another split."""
    for name in other:
        if name not in train:
            continue
        for key in MEANING:
            here, there = (_plain(targets[name].get(key)) for targets in (train, other))
            if here != there:
                yield f'{split}: {key} of the target {name!r}: {_short(there)} here, {_short(here)} for training'


def _plain(value: Any) -> Any:
    return [str(item) for item in value] if isinstance(value, list | tuple | range) else value or None


def _short(value: Any) -> str:
    text = str(value)
    return f'{len(value)} values, {text[:77]}...' if isinstance(value, list) and len(text) > 80 else text


def _listed(names: Any) -> str:
    return ', '.join(map(repr, names)) or 'none'
