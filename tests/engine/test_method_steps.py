"""The trainer makes of a method what the method says outside any trainer."""

import pytest
import torch
from torch import nn

from mmrepmtl.engine import MultiTaskOptimWrapper
from tests.engine.by_hand import ByHand
from tests.engine.harness import run
from tests.engine.overlays import AGGREGATED, CASES, is_at_parameters, ready, settings_of
from tests.engine.toy import Masked, ToyModel, make_batch, make_model, masked_batch, max_difference

PLAIN = [name for name in CASES if not settings_of(name)['regularizers']]


def wrap(model, name, lr=0.02, **changes):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return MultiTaskOptimWrapper(optimizer, shared='encoder', **ready(name, **changes))


def window(name) -> int:
    """Micro-batches per step."""
    return settings_of(name).get('accumulative_counts', 1)


@pytest.mark.parametrize('accumulation', [1, 2])
@pytest.mark.parametrize('name', PLAIN)
def test_five_steps_equal_the_method_called_by_hand(name, accumulation):
    """Also where a task is labelled for part of a batch, in one micro-batch of a window only, or not at all."""
    size = accumulation * window(name)
    batches = [masked_batch(4, seed) for seed in range(5 * size)]
    model, other = make_model(cls=Masked), make_model(cls=Masked)
    wrapper, loop = wrap(model, name, accumulative_counts=size), ByHand(other, name, lr=0.02)
    run(model, wrapper, batches)
    for i in range(0, len(batches), size):
        loop.step(batches[i : i + size])
    # Learned weights are float32.
    assert max_difference(model, other) < (1e-6 if wrapper.weighting.learned() else 1e-10)
    assert max_difference(model, make_model(cls=Masked)) > 1e-4


class OneTask(ToyModel):
    tasks = ('a',)

    def __init__(self):
        super().__init__()
        del self.heads['b'], self.heads['c']

    def losses(self, inputs, a, b, c):
        return dict(a=nn.functional.cross_entropy(self.heads['a'](self.encoder(inputs)), a))


#: Methods whose objective is the log loss, and UW's half of the loss, by definition.
LOGS = ('ew-log', 'stch', 'igbv2', 'db-mtl')


@pytest.mark.parametrize('name', PLAIN)
def test_one_task_is_plain_training(name):
    """The first step; MTAdam's is Adam's in the encoder."""
    model, other = make_model(cls=OneTask), make_model(cls=OneTask)
    run(model, wrap(model, name), [make_batch()] * window(name))
    loss = other.losses(**make_batch())['a']
    objective = loss.log() if name in LOGS else loss / 2 if name == 'uw' else loss
    objective.backward()
    torch.optim.SGD(other.heads.parameters(), lr=0.02).step()
    if name == 'mtadam':  # whose eps is relative
        torch.optim.Adam(other.encoder.parameters(), lr=0.02, eps=1e-14).step()
    else:
        torch.optim.SGD(other.encoder.parameters(), lr=0.02).step()
    assert max_difference(model, other) < 1e-6


@pytest.mark.parametrize('name', AGGREGATED)
def test_heads_on_a_frozen_encoder_learn(name):
    """Nothing is left to combine; DB-MTL's heads minimise log losses there too."""
    model, other = make_model(), make_model()
    for each in (model, other):
        each.encoder.requires_grad_(False)
    run(model, wrap(model, name), [make_batch()] * window(name))
    losses = other.losses(**make_batch()).values()
    sum(loss.log() if name == 'db-mtl' else loss for loss in losses).backward()
    torch.optim.SGD(other.heads.parameters(), lr=0.02).step()
    if is_at_parameters(name):
        assert max_difference(model.heads, other.heads) < 1e-10
    assert all((p != q).any() for p, q in zip(model.heads.parameters(), make_model().heads.parameters(), strict=True))


def test_an_aggregator_reads_the_losses_that_its_rows_are_gradients_of():
    """A factor of a loss is nothing to DB-MTL, wherever it comes from."""
    model, other = make_model(), make_model()
    settings = ready('db-mtl')
    weighted = MultiTaskOptimWrapper(
        torch.optim.SGD(model.parameters(), lr=0.1), shared='encoder', **settings | dict(weighting=dict(type='RLW'))
    )
    run(model, weighted, [make_batch(seed=i) for i in range(3)])
    run(other, wrap(other, 'db-mtl', lr=0.1), [make_batch(seed=i) for i in range(3)])
    assert max_difference(model, other) < 1e-10
