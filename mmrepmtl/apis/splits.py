"""The loaders and evaluators of a config, any of which may be absent or None."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config

from mmrepmtl.datasets import MultiTaskDataset
from mmrepmtl.registry import DATASETS
from mmrepmtl.utils.config_types import is_type

SPLITS = ('train', 'val', 'test')


def loader_of(cfg: Config, split: str) -> Mapping[str, Any] | None:
    """The config of the loader of 'train', 'val' or 'test', or None."""
    return cfg.get(f'{split}_dataloader')


def dataset_of(cfg: Config, split: str, user: str) -> Mapping[str, Any]:
    """The config of the data set of a split.

    Args:
        cfg: The config.
        split: 'train', 'val' or 'test'.
        user: The part that needs it, for the error.

    Raises:
        ValueError: The config has none.
    """
    loader = loader_of(cfg, split)
    if not loader or not loader.get('dataset'):
        raise ValueError(f'{user}: the config has no {split}_dataloader{_likely(cfg, split)}')
    return loader['dataset']


def picture_dataset(cfg: Config, user: str) -> Mapping[str, Any]:
    """The config of the data set whose pipeline says how a picture becomes input: that of the test, else validation.

    Raises:
        ValueError: The config has neither.
    """
    for split in ('test', 'val'):
        if loader_of(cfg, split):
            return dataset_of(cfg, split, user)
    raise ValueError(
        f'{user}: the config has neither a test_dataloader nor a val_dataloader, whose pipeline says how a picture '
        'becomes the input of the network; add one'
    )


def metrics_of_split(cfg: Config, split: str, user: str) -> list[Mapping[str, Any]]:
    """The configs of the metrics of a split, whichever way its evaluator is written.

    Args:
        cfg: The config.
        split: 'val' or 'test'.
        user: The part that needs them, for the error.

    Raises:
        ValueError: The config has none.
    """
    metrics = listed_metrics(cfg.get(f'{split}_evaluator'))
    if not metrics:
        raise ValueError(f'{user}: the config has no {split}_evaluator{_likely(cfg, split)}')
    return metrics


def listed_metrics(evaluator: Any) -> list[Mapping[str, Any]]:
    """An evaluator as a list of metrics: one metric, a list, an evaluator's config with ``metrics``, or None."""
    if not evaluator:
        return []
    if isinstance(evaluator, Mapping):
        return listed_metrics(evaluator['metrics']) if 'metrics' in evaluator else [evaluator]
    return list(evaluator)


def keep_metrics(evaluator: Any, metrics: list[Mapping[str, Any]]) -> Any:
    """The evaluator with other metrics, written in the same way."""
    if isinstance(evaluator, Mapping) and 'metrics' in evaluator:
        return dict(evaluator, metrics=metrics)
    return metrics


def own_datasets(dataset: Mapping[str, Any] | None) -> Iterator[Any]:
    """The configs of data sets inside those of wrappers, such as mmengine's ``RepeatDataset``.

    A :class:`MultiDomainDataset` is a data set and no wrapper: its folder and its targets are its own.
    """
    if not dataset:
        return
    inner = dataset.get('datasets') or ([dataset['dataset']] if dataset.get('dataset') else [])
    children = list(inner.values() if isinstance(inner, Mapping) else inner)
    if not children or is_type(dataset.get('type'), DATASETS, MultiTaskDataset):
        yield dataset
        return
    for child in children:
        yield from own_datasets(child)


def validation_as_test(cfg: Config) -> None:
    """Makes the validation data the ones that are tested, for choices that the test set must not see; changes ``cfg``.

    Raises:
        ValueError: The config has no validation.
    """
    check_split(cfg, 'val', '--split val')
    for part in ('dataloader', 'evaluator'):
        cfg[f'test_{part}'] = copy.deepcopy(cfg[f'val_{part}'])
    cfg.test_cfg = {key: value for key, value in cfg.val_cfg.items() if key != 'type'}  # that of the loop


def check_split(cfg: Config, split: str, user: str) -> None:
    """Raises ValueError, naming the keys, where a config does not say all of a validation or test.

    Args:
        cfg: The config.
        split: 'val' or 'test'.
        user: The part that needs it, for the error.
    """
    keys = (f'{split}_dataloader', f'{split}_cfg', f'{split}_evaluator')
    # A loop's config may be empty.
    missing = [key for key in keys if (cfg.get(key) is None if key.endswith('_cfg') else not cfg.get(key))]
    if missing:
        raise ValueError(f'{user}: the config has no {" and no ".join(missing)}{_likely(cfg, split)}')


def _likely(cfg: Config, split: str) -> str:
    other = dict(val='test', test='val').get(split)
    return f'; set it, for example to that of {other}' if other and loader_of(cfg, other) else '; set it'
