import copy
import itertools
import pickle

import pytest
from mmengine.dataset.sampler import DefaultSampler

import mmrepmtl.datasets.samplers as samplers
from mmrepmtl.datasets import EpochIndex, EpochInfiniteSampler, EpochSampler
from mmrepmtl.registry import DATA_SAMPLERS


def as_rank(monkeypatch, rank, world_size):
    # Both bases ask this function of mmengine's.
    monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda: (rank, world_size))


def carried(index):
    return int(index), index.epoch, index.seed, index.origin


@pytest.mark.parametrize(
    'copied',
    [
        lambda index: pickle.loads(pickle.dumps(index)),
        lambda index: pickle.loads(pickle.dumps([index], protocol=2))[0],
        copy.copy,
        copy.deepcopy,
    ],
)
def test_index_survives_copies(copied):
    index = EpochIndex(7, epoch=3, seed=11)
    assert type(copied(index)) is EpochIndex
    assert carried(copied(index)) == (7, 3, 11, 7)


def test_index_is_an_int_that_keeps_what_it_carries():
    index = EpochIndex(7, epoch=3, seed=11)
    assert index == 7 and list(range(10))[index] == 7 and hash(index) == hash(7)
    for moved, expected in [(index - 5, 2), (index % 4, 3), (index + 1, 8), (1 + index, 8)]:
        assert carried(moved) == (expected, 3, 11, 7)
    # Further steps keep the first index.
    assert carried((index - 2) % 3) == (2, 3, 11, 7)


@pytest.mark.parametrize('world_size', [1, 3])
def test_epoch_sampler_draws_what_the_default_sampler_draws(monkeypatch, world_size):
    for rank, epoch in itertools.product(range(world_size), (0, 4)):
        as_rank(monkeypatch, rank, world_size)
        ours, stock = EpochSampler(range(10), seed=5), DefaultSampler(range(10), seed=5)
        ours.set_epoch(epoch)
        stock.set_epoch(epoch)
        drawn = list(ours)
        assert drawn == list(stock) and len(ours) == len(stock) == len(drawn)
        assert {(index.epoch, index.seed) for index in drawn} == {(epoch, 5)}


def test_a_pass_that_has_begun_keeps_its_epoch():
    sampler = EpochSampler(range(4), seed=0)
    drawn = iter(sampler)
    next(drawn)
    sampler.set_epoch(1)
    assert [index.epoch for index in drawn] == [0, 0, 0]
    assert [index.epoch for index in sampler] == [1] * 4


def test_built_by_name_with_the_runs_seed():
    sampler = DATA_SAMPLERS.build(dict(type='EpochSampler', shuffle=False), default_args=dict(dataset=[1, 2], seed=9))
    assert [carried(index) for index in sampler] == [(0, 0, 9, 0), (1, 0, 9, 1)]
    assert isinstance(DATA_SAMPLERS.build(dict(type='EpochInfiniteSampler', dataset=[1, 2])), EpochInfiniteSampler)


def test_infinite_passes_are_those_of_the_epoch_sampler():
    stream = iter(EpochInfiniteSampler(range(7), seed=2))
    epochs = EpochSampler(range(7), seed=2)
    for epoch in range(4):
        epochs.set_epoch(epoch)
        expected = [carried(index) for index in epochs]
        assert [carried(index) for index in itertools.islice(stream, 7)] == expected


@pytest.mark.parametrize('size, world_size', [(7, 1), (7, 3), (2, 5), (6, 3)])
@pytest.mark.parametrize('shuffle', [True, False])
def test_ranks_share_out_one_infinite_stream(monkeypatch, size, world_size, shuffle):
    as_rank(monkeypatch, 0, 1)
    whole = [carried(i) for i in itertools.islice(EpochInfiniteSampler(range(size), shuffle, seed=1), 60 * world_size)]
    for rank in range(world_size):
        as_rank(monkeypatch, rank, world_size)
        part = itertools.islice(EpochInfiniteSampler(range(size), shuffle, seed=1), 60)
        assert [carried(index) for index in part] == whole[rank::world_size]


@pytest.mark.parametrize('skipped', [0, 1, 6, 7, 23, 50])
@pytest.mark.parametrize('world_size', [1, 3])
def test_skip_continues_where_the_stream_was(monkeypatch, skipped, world_size):
    for rank in range(world_size):
        as_rank(monkeypatch, rank, world_size)
        whole = [carried(index) for index in itertools.islice(EpochInfiniteSampler(range(7), seed=1), skipped + 20)]
        resumed = EpochInfiniteSampler(range(7), seed=1)
        resumed.skip(skipped)
        assert [carried(index) for index in itertools.islice(resumed, 20)] == whole[skipped:]


def test_skip_does_not_draw_what_it_skips(monkeypatch):
    drawn = []
    order = EpochInfiniteSampler._order
    monkeypatch.setattr(
        samplers.EpochInfiniteSampler, '_order', lambda self, epoch: drawn.append(epoch) or order(self, epoch)
    )
    sampler = EpochInfiniteSampler(range(7), seed=1)
    sampler.skip(7_000_000)
    assert next(iter(sampler)).epoch == 1_000_000
    assert drawn == [1_000_000]


def test_wrong_use_of_the_infinite_sampler_is_named():
    with pytest.raises(ValueError, match='num_samples must be 0 or more, got -1'):
        EpochInfiniteSampler(range(3), seed=0).skip(-1)
    with pytest.raises(ValueError, match='data set is empty'):
        next(iter(EpochInfiniteSampler([], seed=0)))
