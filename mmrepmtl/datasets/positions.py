"""A training loader whose batches depend on the seed and the position in the run alone: a run goes on anywhere."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from mmengine.dataset.sampler import InfiniteSampler
from mmengine.dist import get_dist_info
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler

from mmrepmtl.datasets.base import MultiTaskDataset, isolated_rng
from mmrepmtl.datasets.samplers import EpochIndex


class SeededDataset(Dataset):
    """A map-style data set whose random transforms depend on the seed, the epoch and the position alone.

    Without it a worker process draws from generators whose state depends on every sample that it has made before, and
    which no checkpoint can hold. Everything but the samples is that of the data set inside, attributes included.

    Args:
        dataset: The data set.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset: Any = dataset  # torch declares no __len__, __getitem__ alone

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, EpochIndex):
            return self.dataset[index]
        with isolated_rng(index.seed, index.epoch, index.origin):
            return self.dataset[index]

    def __getitems__(self, indices: list) -> list:
        """Several samples, one by one: a data set that loads a batch at once would share one random state."""
        return [self[index] for index in indices]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset' or name.startswith('__'):  # not there yet while a worker unpickles it
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # Hooks change data sets in the middle of a run (another pipeline for the last epochs).
        if name == 'dataset':
            super().__setattr__(name, value)
        else:
            setattr(self.dataset, name, value)


class PositionedSampler(Sampler):
    """A sampler that begins at any batch of any pass, without loading what lies before it.

    Plain integers become :class:`EpochIndex`, so that augmentation depends on (seed, pass, position) with any sampler;
    indices that know their epoch already stay as they are.

    Args:
        sampler: A sampler of indices, or of batches of them.
        per_batch: Items of it that make one batch of the loader.
        seed: The run's.
    """

    def __init__(self, sampler: Any, per_batch: int, seed: int) -> None:
        self.sampler_inside, self.per_batch, self.seed_of_run = sampler, per_batch, seed
        self.rank, self.world_size = get_dist_info()
        self._pass = 0
        self._begun: tuple[Iterator, int] | None = None

    def __iter__(self) -> Iterator:
        begun, self._begun = self._begun, None
        items, position = begun or (iter(self.sampler_inside), 0)
        return self._marked(items, self._pass, position)

    def __len__(self) -> int:
        return len(self.sampler_inside)

    def __getattr__(self, name: str) -> Any:
        if name == 'sampler_inside' or name.startswith('__'):
            raise AttributeError(name)
        return getattr(self.sampler_inside, name)

    def begin(self, number: int, batches: int = 0) -> int:
        """Has the next pass begin after ``batches`` batches of the pass ``number``.

        Returns:
            The batches that were left out, which are fewer if the pass is shorter.
        """
        self._pass, self._begun = number, None
        if batches == 0:
            return 0
        wanted = batches * self.per_batch
        if isinstance(self.sampler_inside, InfiniteSampler) and hasattr(self.sampler_inside, 'skip'):
            self.sampler_inside.skip(wanted)
            self._begun = iter(self.sampler_inside), wanted
            return batches
        items, position, taken = iter(self.sampler_inside), 0, 0
        for item in islice(items, wanted):
            position += len(item) if isinstance(item, list | tuple) else 1
            taken += 1
        self._begun = items, position
        return -(-taken // self.per_batch)

    def _marked(self, items: Iterator, number: int, position: int) -> Iterator:
        for item in items:
            if isinstance(item, list | tuple):
                yield [self._mark(index, number, position + offset) for offset, index in enumerate(item)]
                position += len(item)
            else:
                yield self._mark(item, number, position)
                position += 1

    def _mark(self, index: Any, number: int, position: int) -> Any:
        if isinstance(index, EpochIndex) or not isinstance(index, int):
            return index
        return EpochIndex(index, number, self.seed_of_run, position * self.world_size + self.rank)


def positioned_loader(loader: DataLoader, seed: int) -> DataLoader:
    """The same loader with a :class:`PositionedSampler` and a generator of its own.

    torch draws the seed of the workers from the global generator whenever a loader is iterated over. A resumed run
    would draw it at another time than an uninterrupted one.

    Args:
        loader: As mmengine builds it. One of a class of its own, or of an iterable data set, is kept as it is, apart
            from the generator.
        seed: The run's.
    """
    if loader.generator is None:
        loader.generator = torch.Generator().manual_seed(seed)
    if type(loader) is not DataLoader or isinstance(loader.dataset, IterableDataset):
        return loader
    dataset = loader.dataset
    settings = dict(
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
        in_order=getattr(loader, 'in_order', True),
    )
    if loader.batch_size is not None and type(loader.batch_sampler) is BatchSampler:
        sampler = PositionedSampler(loader.sampler, loader.batch_size, seed)
        settings |= dict(sampler=sampler, batch_size=loader.batch_size, drop_last=loader.drop_last)
    elif loader.batch_sampler is not None:
        settings |= dict(batch_sampler=PositionedSampler(loader.batch_sampler, 1, seed))
    else:
        settings |= dict(sampler=PositionedSampler(loader.sampler, 1, seed), batch_size=None)
    # A MultiTaskDataset seeds each sample itself, by the same index.
    return DataLoader(dataset if isinstance(dataset, MultiTaskDataset) else SeededDataset(dataset), **settings)


def position_of(loader: DataLoader) -> PositionedSampler | None:
    """The sampler that :func:`positioned_loader` put in, if it could."""
    places = (loader.sampler, getattr(loader, 'batch_sampler', None))
    return next((place for place in places if isinstance(place, PositionedSampler)), None)
