from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from mmrepmtl.datasets.samplers import EpochIndex, EpochSampler
from mmrepmtl.registry import DATA_SAMPLERS


@DATA_SAMPLERS.register_module()
class DomainBatchSampler:
    """Batches with samples of every domain of a :class:`MultiDomainDataset`, in the order of the tasks.

        train_dataloader = dict(
            batch_size=64,                                   # per task and process; or {task: number}
            sampler=dict(type='EpochSampler', shuffle=True),
            batch_sampler=dict(type='DomainBatchSampler'), ...)

    An epoch is as long as one pass over the domain that has most batches. The others begin again, in a new order, as
    often as needed; each epoch begins with a new pass over every domain. The batches are a function of (seed, epoch,
    rank), so a resumed run gets those of an uninterrupted one. All processes together draw what one process with the
    batch size times their number would draw: each sees every domain in each step, with samples of its own.

    The indices are :class:`EpochIndex`; their ``epoch`` counts the passes over *their domain*, so that a sample that
    comes twice in an epoch is augmented anew.

    Args:
        sampler: Gives data set, seed, order (``shuffle``), epoch and process; its own indices are not used.
        batch_size: Samples of each domain per batch and process, or {task: number}.
        drop_last: Leave out what does not fill a batch at the end of each pass over a domain, as public code does.
            Otherwise that is a smaller batch, in which the processes get equal numbers of samples by repeating up to
            ``world_size - 1`` of the pass.

    Raises:
        ValueError: The sampler is no EpochSampler of a MultiDomainDataset, a batch size is missing or not positive, or
            a domain is too small for a batch.

    Source: iterations per epoch and per-pass ``drop_last`` as in LibMTL's ``multi_input`` training.
    """

    def __init__(self, sampler: EpochSampler, batch_size: int | Mapping[str, int], drop_last: bool = True) -> None:
        domains = getattr(getattr(sampler, 'dataset', None), 'domains', None)
        if not isinstance(sampler, EpochSampler) or domains is None:
            raise ValueError(
                f'DomainBatchSampler needs an EpochSampler of a MultiDomainDataset, got {type(sampler).__name__} of '
                f'{type(getattr(sampler, "dataset", None)).__name__}; set sampler=dict(type="EpochSampler")'
            )
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.domains: dict[str, range] = domains
        self._sizes = {task: self._size_of(task) for task in domains}
        self._passes = {task: self._batches_per_pass(task) for task in domains}

    def __len__(self) -> int:
        """Batches per epoch."""
        return max(self._passes.values())

    def __iter__(self) -> Iterator[list[EpochIndex]]:
        # The epoch is taken now and not at the first batch: a later set_epoch() must not change a pass that has begun.
        return self._batches(self.sampler.epoch)

    def _batches(self, epoch: int) -> Iterator[list[EpochIndex]]:
        streams = [self._stream(task, epoch) for task in self.domains]
        for _ in range(len(self)):
            yield [index for stream in streams for index in next(stream)]

    def _stream(self, task: str, epoch: int) -> Iterator[list[EpochIndex]]:
        """This process's parts of the batches of a domain, without end."""
        rank, world_size, seed = self.sampler.rank, self.sampler.world_size, self.sampler.seed
        number = -(-len(self) // self._passes[task]) * epoch
        block = self._sizes[task] * world_size
        while True:
            order = self._order(task, number)
            for start in range(0, self._passes[task] * block, block):
                batch = order[start : start + block]
                batch = [*batch, *order[: -len(batch) % world_size]]
                yield [EpochIndex(index, number, seed) for index in batch[rank::world_size]]
            number += 1

    def _order(self, task: str, number: int) -> Sequence[int]:
        """The indices of a domain in the order of its pass ``number``."""
        indices = self.domains[task]
        if not self.sampler.shuffle:
            return indices
        # Not the seed alone: domains of one size would be permuted alike.
        key = np.random.SeedSequence([self.sampler.seed, indices.start, number]).generate_state(1, np.uint64)
        generator = torch.Generator()
        generator.manual_seed(int(key[0]))
        return (torch.randperm(len(indices), generator=generator) + indices.start).tolist()

    def _size_of(self, task: str) -> int:
        size = self.batch_size.get(task) if isinstance(self.batch_size, Mapping) else self.batch_size
        if not isinstance(size, int) or size < 1:
            raise ValueError(f'DomainBatchSampler: the batch size of {task!r} is {size!r}, expected a positive number')
        return size

    def _batches_per_pass(self, task: str) -> int:
        samples, block = len(self.domains[task]), self._sizes[task] * self.sampler.world_size
        count = samples // block if self.drop_last else -(-samples // block)
        if not count or samples < self.sampler.world_size:
            raise ValueError(
                f'DomainBatchSampler: the domain {task!r} has {samples} samples, fewer than one batch of '
                f'{self._sizes[task]} on {self.sampler.world_size} process(es); lower batch_size'
                + (' or set drop_last=False' if self.drop_last else '')
            )
        return count
