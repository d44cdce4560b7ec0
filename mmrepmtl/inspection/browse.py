"""A sheet of what the network of a config is fed; see :func:`browse_dataset`."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from mmrepmtl.apis.splits import dataset_of
from mmrepmtl.datasets import EpochIndex
from mmrepmtl.registry import DATASETS, MODELS
from mmrepmtl.utils.folders import check_writable
from mmrepmtl.visualization import write_picture
from mmrepmtl.visualization.draw import check_format
from mmrepmtl.visualization.target_grid import target_grid


def browse_dataset(
    cfg: Config,
    out: str | Path,
    split: str = 'train',
    num: int = 8,
    seed: int | None = None,
    epoch: int = 0,
) -> list[int]:
    """Writes a picture of samples as the network gets them: after augmentation, preprocessing and padding to a batch.

    Only the normalisation of the images is undone, so that they can be looked at.

    Args:
        cfg: As :func:`mmrepmtl.apis.load_config` makes it.
        out: The file, .png or .jpg.
        split: 'train', 'val' or 'test'.
        num: Number of samples, spread evenly over the data set.
        seed: The seed of the augmentation; None takes the run's.
        epoch: The epoch of the augmentation. 'val' and 'test' have no random numbers of their own.

    Returns:
        The samples' numbers.

    Raises:
        ValueError: On a number below 1, a file that cannot be written, or a config without such a loader.
    """
    init_default_scope(cfg.get('default_scope', 'mmrepmtl'))
    if num < 1:
        raise ValueError(f'browse_dataset: num={num} must be at least 1')
    check_format(out)
    check_writable(Path(out).parent)
    dataset = DATASETS.build(dataset_of(cfg, split, 'browse_dataset'))
    count = min(num, len(dataset))
    numbers = [round(number) for number in np.linspace(0, len(dataset) - 1, count)]
    seed = (cfg.get('randomness') or {}).get('seed') or 0 if seed is None else seed
    indices = [EpochIndex(number, epoch, seed) if split == 'train' else number for number in numbers]
    items = [dataset[index] for index in indices]
    batch = dict(inputs=[item['inputs'] for item in items], data_samples=[item['data_samples'] for item in items])
    # The preprocessor writes into the samples, which a data set may keep.
    preprocessor = _preprocessor(cfg)
    with torch.no_grad():
        fed = preprocessor(copy.deepcopy(batch), training=split == 'train')
    for sample in fed['data_samples']:
        sample.set_metainfo(dict(img_shape=tuple(fed['inputs'].shape[-2:])))
    declared = dict(dataset.metainfo['targets'])
    names = [_name(number, item['data_samples']) for number, item in zip(numbers, items, strict=True)]
    images = denormalise(fed['inputs'], preprocessor).clamp(0, 1)
    write_picture(out, target_grid(images, fed['data_samples'], declared, _captions(cfg, declared), names))
    return numbers


def denormalise(images: Tensor, preprocessor: nn.Module) -> Tensor:
    """Undoes the normalisation of a data preprocessor that has ``mean`` and ``std``, (B, 3, H, W)."""
    mean, std = getattr(preprocessor, 'mean', None), getattr(preprocessor, 'std', None)
    return images if mean is None or std is None else images * std.to(images) + mean.to(images)


def _preprocessor(cfg: Config) -> nn.Module:
    config = (cfg.get('model') or {}).get('data_preprocessor') or dict(type='mmrepmtl.MultiTaskDataPreprocessor')
    return MODELS.build(config)


def _captions(cfg: Config, declared: Mapping[str, Any]) -> dict[str, str]:
    """Above each target the tasks that learn it."""
    heads = (cfg.get('model') or {}).get('heads') or {}
    tasks = {name: [task for task, head in heads.items() if (head.get('target') or task) == name] for name in declared}
    return {
        name: name if learners == [name] else f'{name} ({", ".join(learners) or "no head"})'
        for name, learners in tasks.items()
        if heads
    }


def _name(number: int, sample: Any) -> str:
    return f'{number}:  {"/".join(Path(str(sample.get("img_path", ""))).parts[-3:])}'
