"""The endless stream of batches of an iteration loop, from loaders that have no length."""

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, Sampler

from mmrepmtl.engine.loops import BatchStream


class Numbers(IterableDataset):
    """0 to 5, and no length."""

    def __iter__(self):
        return iter(range(6))


class Endless(Sampler):
    """0, 1, 2, 0, 1, 2, ... and no length."""

    def __iter__(self):
        while True:
            yield from range(3)


@pytest.mark.parametrize('workers', [0, 1])
def test_a_data_set_without_length_is_repeated(workers):
    stream = BatchStream(DataLoader(Numbers(), batch_size=2, num_workers=workers))
    assert [next(stream).tolist() for _ in range(7)] == [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3], [4, 5], [0, 1]]


def test_an_endless_sampler_needs_no_length():
    loader = DataLoader(torch.arange(3), batch_size=2, sampler=Endless())
    stream = BatchStream(loader)
    assert [next(stream).tolist() for _ in range(4)] == [[0, 1], [2, 0], [1, 2], [0, 1]]


def test_a_loader_without_batches_is_refused():
    with pytest.raises(ValueError, match='no batches'):
        next(BatchStream(DataLoader(torch.arange(3), batch_size=4, drop_last=True)))
