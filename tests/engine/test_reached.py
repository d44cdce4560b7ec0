"""A parameter without a gradient on one rank: DistributedDataParallel on the others would wait for it for good."""

import pytest
import torch
import torch.distributed as dist
from mmengine.model import MMDistributedDataParallel
from torch import nn

from mmrepmtl.engine import MultiTaskOptimWrapper
from tests.engine.toy import ToyModel, make_batch, make_model


class Unused(ToyModel):
    """Holds a parameter that no loss depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(3))


@pytest.fixture(autouse=True)
def _group():
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def step(cls, ddp=None, freeze=False, **settings):
    model = make_model(cls=cls)
    if freeze:
        model.unused.requires_grad_(False)
    wrapped = MMDistributedDataParallel(model, **(ddp or {}))
    wrapper = MultiTaskOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), shared='encoder', **settings)
    wrapped.train_step(make_batch(4), wrapper)


def test_it_is_named_in_the_step_itself():
    with pytest.raises(RuntimeError, match='unused got no gradient on this rank.* find_unused_parameters=True'):
        step(Unused)


def test_what_need_not_be_reached_is_not_asked_for():
    step(ToyModel)
    step(Unused, dict(find_unused_parameters=True))
    step(Unused, freeze=True)
    step(Unused, aggregator=dict(type='PCGrad'))  # reduces its own gradients, and asks which are there
    step(Unused, dict(find_unused_parameters=True), accumulative_counts=2)
