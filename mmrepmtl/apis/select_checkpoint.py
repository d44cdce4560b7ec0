"""Which of a run's checkpoints counts, and that it is not chosen on the data that it is judged by."""

import copy
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmrepmtl.apis.config import dataset_text
from mmrepmtl.apis.splits import check_split, dataset_of
from mmrepmtl.engine.hooks.metrics_file import MetricsFileHook
from mmrepmtl.engine.hooks.selection import LAST, SELECTIONS
from mmrepmtl.evaluation import higher_is_better
from mmrepmtl.registry import DATASETS, HOOKS
from mmrepmtl.utils.config_types import is_type, type_name


def apply_selection(cfg: Config, selection: str = 'last', metric: str | None = None, force: bool = False) -> None:
    """Makes a run select a checkpoint, or average its last evaluations; changes ``cfg``.

    Args:
        cfg: As :func:`mmrepmtl.apis.load_config` makes it.
        selection: 'last': the last checkpoint, nothing is selected. 'best-val': the best on ``val_dataloader``, which
            goes to ``best.pth``. 'last10': the mean of the metrics over the evaluations of the last 10 epochs, each of
            which is then evaluated; where validation is on the test set, by ``test_evaluator``.
        metric: ``'task/metric'`` that 'best-val' goes by; None: see :class:`SelectionHook`.
        force: Allow 'best-val' where ``val_dataloader`` and ``test_dataloader`` have the same data.

    Raises:
        ValueError: 'best-val' would select on the test set; a setting is unknown or does not fit the config.
    """
    if selection not in SELECTIONS:
        raise ValueError(f'--selection: {selection!r} is unknown; there are {", ".join(SELECTIONS)}')
    if metric is not None and selection != 'best-val':
        raise ValueError(f'--selection-metric: {selection} selects by no metric; it is for best-val')
    cfg.selection = selection
    if selection == 'last':
        return
    single = bool(cfg.get('single_task'))
    if metric is not None:
        higher_is_better(metric)
        if single:
            raise ValueError(
                '--selection-metric: a task that is trained alone has no metrics of the others; leave it out'
            )
    check_split(cfg, 'val', f'--selection {selection}')
    # A config without a test has no test set that a validation could be on.
    on_test_set = bool(cfg.get('test_dataloader')) and validates_on_test_set(cfg)
    if selection == 'best-val' and on_test_set and not force:
        raise ValueError(
            '--selection best-val: val_dataloader and test_dataloader have the same data, so the checkpoint would be '
            'selected on the test set; use last or last10, or --force-selection, which the results will say'
        )
    if selection == 'last10':
        if single and not on_test_set:
            raise ValueError(
                '--selection last10: single-task baselines are measured on the test set, but val_dataloader has other '
                'data; use last or best-val'
            )
        _evaluate_last_epochs(cfg)
        if on_test_set:
            cfg.val_evaluator = copy.deepcopy(cfg.test_evaluator)
    hook = dict(type='SelectionHook', selection=selection, metric=metric, on_test_set=on_test_set)
    others = [
        other for other in cfg.get('custom_hooks') or [] if not is_type(other.get('type'), HOOKS, MetricsFileHook)
    ]
    cfg.custom_hooks = [*others, hook]


def validates_on_test_set(cfg: Config) -> bool:
    """Whether validation and test share data: equal configs (up to folders and targets), or a common file."""
    configs = [dataset_of(cfg, split, '--selection') for split in ('val', 'test')]
    if dataset_text(configs[0]) == dataset_text(configs[1]):
        return True
    init_default_scope(cfg.get('default_scope', 'mmrepmtl'))
    validation, test = (_files(DATASETS.build(copy.deepcopy(config))) for config in configs)
    return not validation.isdisjoint(test)


def _files(dataset: Any) -> set[str]:
    """The files that a data set lists for its samples, one by one; none for data that is made up."""
    parts = getattr(dataset, 'datasets', None)
    if parts:
        return set().union(*(_files(part) for part in (parts.values() if isinstance(parts, dict) else parts)))
    infos = (dataset.get_data_info(index) for index in range(len(dataset)))
    counts = Counter(text for info in infos for text in set(_strings(info)) if os.sep in text)
    # A path that several samples name is a folder or a table, which two splits may share.
    return {os.path.realpath(text) for text, count in counts.items() if count == 1}


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _strings(part)


def _evaluate_last_epochs(cfg: Config) -> None:
    """Has each of the last epochs validated, whatever ``val_interval`` is."""
    loop = cfg.train_cfg
    by_epoch = loop.get('by_epoch', type_name(loop.get('type')) == 'EpochBasedTrainLoop')
    if not by_epoch or loop.get('max_epochs', 0) < LAST:
        raise ValueError(f'--selection last10 needs at least {LAST} epochs, but train_cfg is {dict(loop)}')
    # An epoch e is validated by the interval of the last milestone up to e + 1.
    first = loop.max_epochs - LAST + 1
    if loop.get('val_begin', 1) > first:
        raise ValueError(
            f'--selection last10: val_begin={loop.val_begin}, but epochs from {first} on must be evaluated'
        )
    kept = [tuple(item) for item in loop.get('dynamic_intervals') or [] if item[0] < first + 1]
    loop.dynamic_intervals = [*kept, (first + 1, 1)]
