"""Samplers whose indices carry the epoch and the seed, so that augmentation can depend on them (see ``base.py``)."""

from collections.abc import Iterator

import torch
from mmengine.dataset.sampler import DefaultSampler, InfiniteSampler

from mmrepmtl.registry import DATA_SAMPLERS


class EpochIndex(int):
    """An index into a data set that knows the epoch and the seed it was drawn with.

    It is an ``int`` wherever one is expected, and survives pickling, so it reaches the worker processes, which have no
    other way to learn the epoch when they are persistent. ``index - n``, ``index + n`` and ``index % n`` keep what it
    carries: mmengine's ``ConcatDataset`` and ``RepeatDataset`` compute inner indices like this.

    Args:
        index (int): The index.
        epoch (int): Passes over the data before this one.
        seed (int): The sampler's seed, which mmengine takes from the run's ``randomness``.
        origin (int, optional): The index as the sampler drew it, before a wrapper moved it; ``index`` by default.
    """

    epoch: int
    seed: int
    origin: int

    def __new__(cls, index: int, epoch: int, seed: int, origin: int | None = None) -> 'EpochIndex':
        self = super().__new__(cls, index)
        self.epoch, self.seed = int(epoch), int(seed)
        self.origin = int(index if origin is None else origin)
        return self

    def _moved(self, index: int) -> 'EpochIndex':
        return EpochIndex(index, self.epoch, self.seed, self.origin)

    def __add__(self, other: int) -> 'EpochIndex':
        return self._moved(int(self) + other)

    __radd__ = __add__

    def __sub__(self, other: int) -> 'EpochIndex':
        return self._moved(int(self) - other)

    def __mod__(self, other: int) -> 'EpochIndex':
        return self._moved(int(self) % other)

    def __reduce__(self) -> tuple:
        return EpochIndex, (int(self), self.epoch, self.seed, self.origin)


@DATA_SAMPLERS.register_module()
class EpochSampler(DefaultSampler):
    """mmengine's ``DefaultSampler`` (same order, same arguments) that yields :class:`EpochIndex`.

    Use it for training: then augmentation is a function of (seed, epoch, index), whatever the number of workers and
    wherever the run was interrupted.
    """

    def __iter__(self) -> Iterator[EpochIndex]:
        # A list, not a generator: a later set_epoch() must not change indices of a pass that has begun.
        return iter([EpochIndex(index, self.epoch, self.seed) for index in super().__iter__()])


@DATA_SAMPLERS.register_module()
class EpochInfiniteSampler(InfiniteSampler):
    """An endless stream of :class:`EpochIndex` for ``IterBasedTrainLoop``.

    Each pass over the data is a permutation of its own, that of ``DefaultSampler`` at the same epoch and seed. So a
    position of the stream is found without drawing what lies before it, and :meth:`skip` takes no time.

    Args:
        dataset (Sized): The data set.
        shuffle (bool): Whether to permute each pass. Defaults to True.
        seed (int, optional): The same on all ranks; None draws one and shares it.

    Raises:
        ValueError: If the data set is empty, or ``skip`` gets a negative number.
    """

    def _indices_of_rank(self, start: int = 0) -> Iterator[EpochIndex]:
        if self.size == 0:
            raise ValueError('EpochInfiniteSampler: the data set is empty, an endless stream cannot be drawn from it')
        epoch, offset = divmod(start * self.world_size + self.rank, self.size)
        while True:
            order = self._order(epoch)
            while offset < self.size:
                yield EpochIndex(order[offset], epoch, self.seed)
                offset += self.world_size
            # A stride longer than the data set jumps over whole passes.
            passes, offset = divmod(offset, self.size)
            epoch += passes

    def _order(self, epoch: int) -> list[int]:
        if not self.shuffle:
            return list(range(self.size))
        generator = torch.Generator()
        generator.manual_seed(self.seed + epoch)
        return torch.randperm(self.size, generator=generator).tolist()

    def skip(self, num_samples: int) -> None:
        """Moves to an absolute position of this rank's stream, counted from its start (used on resume)."""
        if num_samples < 0:
            raise ValueError(f'EpochInfiniteSampler.skip: num_samples must be 0 or more, got {num_samples}')
        self.indices = self._indices_of_rank(num_samples)
