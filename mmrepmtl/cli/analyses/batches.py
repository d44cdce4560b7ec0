"""The batches of a split that an analysis is given on the command line."""

import copy
import re
from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.config import Config

from mmrepmtl.analysis.conflict import Batch
from mmrepmtl.apis.splits import dataset_of, own_datasets, picture_dataset
from mmrepmtl.registry import DATASETS

_FORM = re.compile(r'(train|val|test):(\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)')


def parse_batches(texts: Sequence[str], batch_size: int) -> list[tuple[str, list[int]]]:
    """(split, indices) of each batch.

    Args:
        texts: SPLIT:INDICES, such as 'val:0-63' or 'train:0,5,7'; both ends of a range belong to it.
        batch_size: The most images of a batch.

    Raises:
        ValueError: Another form, or a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f'--batch-size must be at least 1, got {batch_size}')
    batches = []
    for text in texts:
        match = _FORM.fullmatch(text)
        if match is None:
            raise ValueError(f'{text!r}: a batch is written SPLIT:INDICES, for example val:0-63 or train:0,5,7')
        indices = [index for part in match[2].split(',') for index in _range(part)]
        batches += [(match[1], indices[i : i + batch_size]) for i in range(0, len(indices), batch_size)]
    return batches


def _range(part: str) -> Iterator[int]:
    first, _, last = part.partition('-')
    return iter(range(int(first), int(last or first) + 1))


def read_batches(cfg: Config, texts: Sequence[str], batch_size: int, data_root: str | None = None) -> list[Batch]:
    """The batches, with the pipeline of the test, so that none is augmented.

    Args:
        cfg: The config.
        texts: As for :func:`parse_batches`, as is ``batch_size``.
        batch_size: The most images of a batch.
        data_root: Replaces that of the data set.

    Raises:
        ValueError: As :func:`parse_batches`; a split that the config or an index that the split does not have.
    """
    datasets: dict[str, Any] = {}
    batches: list[Batch] = []
    for split, indices in parse_batches(texts, batch_size):
        if split not in datasets:
            pipeline = picture_dataset(cfg, 'conflict').get('pipeline', [])
            config = copy.deepcopy(dataset_of(cfg, split, f'conflict on {split}'))
            for own in own_datasets(config):
                if data_root is not None and 'data_root' in own:
                    own['data_root'] = data_root
            datasets[split] = DATASETS.build(dict(config, pipeline=pipeline, test_mode=True))
        dataset = datasets[split]
        outside = [index for index in indices if index >= len(dataset)]
        if outside:
            raise ValueError(f'{split}:{outside[0]}: the split {split!r} has {len(dataset)} images')
        items = [dataset[index] for index in indices]
        batches.append(([item['inputs'] for item in items], [item['data_samples'] for item in items]))
    return batches
