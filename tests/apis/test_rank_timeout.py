"""How long a rank may wait for the others: one setting for every backend and group."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config

from mmrepmtl.apis.config import RANK_TIMEOUT, finish_launch, prepare_launch, rank_timeout
from mmrepmtl.methods import collectives


def config(timeout, launcher='pytorch'):
    return Config(dict(launcher=launcher, env_cfg=dict(dist_cfg=dict(backend='nccl', timeout=timeout))))


@pytest.mark.parametrize(
    'value',
    ['5', 'abc', True, False, 0, -1, -0.5, float('nan'), float('inf'), 1e30, [5], timedelta(seconds=5)],
    ids=repr,
)
@pytest.mark.parametrize('launcher', ['none', 'pytorch'])
def test_what_is_no_number_of_seconds_is_refused_before_anything_starts(value, launcher):
    with pytest.raises(ValueError) as error:
        prepare_launch(config(value, launcher))
    assert str(error.value).startswith('env_cfg.dist_cfg.timeout must be a number of seconds above 0, got ')
    assert len(str(error.value).splitlines()) == 1
    assert not dist.is_initialized()


def test_the_default_is_ten_minutes():
    assert RANK_TIMEOUT == 600
    for cfg in (dict(), dict(env_cfg=dict()), dict(env_cfg=None), dict(env_cfg=dict(dist_cfg=dict(backend='nccl')))):
        assert rank_timeout(Config(cfg)) == RANK_TIMEOUT
    assert (
        rank_timeout(config(None)) == RANK_TIMEOUT and rank_timeout(config(7)) == 7 and rank_timeout(config(0.5)) == 0.5
    )


@pytest.fixture
def launched(monkeypatch):
    """A started group of one process, as torchrun would ask for it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in dict(RANK='0', WORLD_SIZE='1', MASTER_ADDR='127.0.0.1', MASTER_PORT='0').items():
            patch.setenv(name, value)
        prepare_launch(config(77))
    yield
    finish_launch()


@pytest.mark.skipif(torch.cuda.is_available(), reason='mmengine starts the group where there is a GPU')
def test_gloo_and_our_own_group_have_the_bound(launched, monkeypatch):
    """The watch speaks at the bound itself; the collectives end by themselves where there is no watch."""
    assert collectives._timeout(dist.group.WORLD) == timedelta(seconds=107)
    assert collectives.own_group() is None  # one process
    monkeypatch.setattr(collectives, 'num_processes', lambda: 2)
    assert collectives._timeout(collectives.own_group()) == timedelta(seconds=107)


def test_a_group_that_does_not_tell_leaves_the_default():
    assert collectives._timeout(object()) is None
