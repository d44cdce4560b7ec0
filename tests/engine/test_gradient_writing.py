"""From per-task gradients to ``.grad``: an aggregator of weights 1 is no aggregator, whatever the model looks like."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from mmrepmtl.engine import MultiTaskOptimWrapper
from mmrepmtl.engine.gradients import writing
from tests.engine.harness import REP, Ones, OnesOnRows, run, wrap
from tests.engine.toy import BadGradient, ToyModel, bad_batch, make_batch, make_model, max_difference

NAN = float('nan')


class OnesOnHeads(Ones):
    weights_heads_by_default = True


SUMS = dict(
    gramian=Ones,
    heads=OnesOnHeads,
    rows=OnesOnRows,
    z=lambda: Ones(level='representation'),
    z_heads=lambda: OnesOnHeads(level='representation'),
)


class TwoWeights(nn.Module):
    """A convolution whose weight is ``w1 + w2``, which have one gradient between them, and a bias that is summed up."""

    def __init__(self, inside, outside):
        super().__init__()
        self.w1, self.w2 = (nn.Parameter(0.3 * torch.randn(outside, inside, 3, 3)) for _ in range(2))
        self.bias = nn.Parameter(0.1 * torch.randn(7))

    def forward(self, x):
        return F.conv2d(x, self.w1 + self.w2, padding=1).tanh() + self.bias.sum()


class AddedInHead(ToyModel):
    def __init__(self):
        super().__init__()
        self.heads['b'] = TwoWeights(4, 1)


class AddedInEncoder(ToyModel):
    def __init__(self):
        super().__init__()
        self.encoder = TwoWeights(3, 4)


class Alternating(ToyModel):
    """A layer of the encoder that is used in every other call."""

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.calls = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), 0

        def forward(self, x):
            self.calls += 1
            z = self.first(x).tanh()
            return self.second(z).tanh() if self.calls % 2 else z

    def __init__(self):
        super().__init__()
        self.encoder = self.Encoder()


class FrozenLater(ToyModel):
    """Its encoder's first layer no longer learns after some calls."""

    calls = 0

    def losses(self, *args, **kwargs):
        self.calls += 1
        if self.calls == 3:
            self.encoder[0].requires_grad_(False)
        return super().losses(*args, **kwargs)


MODELS = (ToyModel, AddedInHead, AddedInEncoder, Alternating, FrozenLater)
SETTINGS = dict(
    plain=dict(),
    clip=dict(clip_grad=dict(max_norm=0.05)),
    accumulate=dict(regularizers=[REP], clip_grad=dict(max_norm=0.3), accumulative_counts=2),
    fp16=dict(precision='fp16', loss_scale=dict(init_scale=256.0)),
)


def train(cls, aggregator, settings):
    dtype = torch.float32 if 'precision' in settings else torch.float64
    model = make_model(cls=cls, dtype=dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1, eps=1e-3)
    wrapper = MultiTaskOptimWrapper(optimizer, shared='encoder', aggregator=aggregator, **settings)
    run(model, wrapper, [make_batch(seed=i, dtype=dtype) for i in range(6)])
    return model


@pytest.mark.parametrize('settings', SETTINGS)
@pytest.mark.parametrize('cls', MODELS)
def test_an_aggregator_of_weights_one_is_no_aggregator(cls, settings):
    plain, half = train(cls, None, SETTINGS[settings]), settings == 'fp16'
    for name, make in SUMS.items():
        found = train(cls, make(), SETTINGS[settings])
        assert max_difference(found, plain) < (5e-4 if half else 1e-12), name
    assert max_difference(plain, make_model(cls=cls, dtype=next(plain.parameters()).dtype)) > 5e-3


@pytest.mark.parametrize('name', ['MTAdam', 'MoCo', 'DBMTL', 'MetaBalance', 'CAGrad'])
def test_a_layer_that_is_frozen_later_stays_where_it_is(name):
    """Moments and averages of its own do not move it on."""
    model = make_model()
    wrapper = wrap(model, lr=0.01, aggregator=dict(type=name))
    run(model, wrapper, [make_batch(seed=i) for i in range(3)])
    model.encoder[0].requires_grad_(False)
    before, moving = model.encoder[0].weight.clone(), model.encoder[2].weight.clone()
    run(model, wrapper, [make_batch(seed=i) for i in range(3, 6)])
    assert torch.equal(model.encoder[0].weight, before) and not torch.equal(model.encoder[2].weight, moving)
    model.encoder.requires_grad_(False)
    before, heads = model.encoder[2].weight.clone(), model.heads['a'][0].weight.clone()
    run(model, wrapper, [make_batch(seed=6)])
    assert torch.equal(model.encoder[2].weight, before) and not torch.equal(model.heads['a'][0].weight, heads)


class Normalised(ToyModel):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh())


@pytest.mark.parametrize('settings', [dict(on_nonfinite='skip'), dict(precision='fp16')])
@pytest.mark.parametrize('name', [None, 'PCGrad'])
def test_a_skipped_step_leaves_the_running_statistics_alone(name, settings):
    dtype = torch.float32 if 'precision' in settings else torch.float64
    model = make_model(cls=Normalised, dtype=dtype)
    wrapper = wrap(model, aggregator=name and dict(type=name), accumulative_counts=2, **settings)
    good, more = make_batch(dtype=dtype), make_batch(seed=1, dtype=dtype)
    run(model, wrapper, [good, more])
    before = {key: value.clone() for key, value in model.named_buffers()}
    run(model, wrapper, [more, dict(good, inputs=good['inputs'] * NAN)])
    assert all(torch.equal(value, before[key]) for key, value in model.named_buffers())
    run(model, wrapper, [good, more])
    after = dict(model.named_buffers())
    assert not any(torch.equal(after[key], before[key]) for key in before)
    assert all(value.isfinite().all() for value in after.values())


def test_a_short_last_window_does_not_read_the_rows_of_one_that_was_dropped():
    model = make_model(cls=BadGradient)
    model.where = 'z'
    wrapper = wrap(model, aggregator=dict(type='SDMGrad'), accumulative_counts=3, on_nonfinite='skip')
    wrapper.initialize_count_status(model, 0, 4)
    run(model, wrapper, [make_batch(seed=1), make_batch(seed=2), bad_batch()])
    before = model.encoder[0].weight.clone()
    run(model, wrapper, [make_batch(seed=3)])  # the last one of the run, and a window of its own
    assert wrapper.policy.total == 1 and not torch.equal(model.encoder[0].weight, before)


@pytest.fixture
def two_processes(monkeypatch):
    """As on one of two ranks whose other one has the same gradients."""
    monkeypatch.setattr(writing, 'num_processes', lambda: 2)
    monkeypatch.setattr(dist, 'all_reduce', lambda tensor, group=None: tensor.mul_(2))


def test_gradients_are_averaged_in_buckets(two_processes, monkeypatch):
    monkeypatch.setattr(writing, 'BUCKET', 11)
    sizes = [(3,), (4, 2), (25,), (1,), (2,), (9,)]
    parameters = [nn.Parameter(torch.zeros(size, dtype=torch.float64)) for size in sizes]
    parameters[3] = nn.Parameter(torch.zeros(1, dtype=torch.float32))
    grads = [torch.randn(p.shape, dtype=p.dtype) for p in parameters]
    for p, grad in zip(parameters[:-1], grads, strict=False):
        p.grad = grad.clone()
    owned = [p.grad for p in parameters]
    writing.average_gradients(parameters, None)
    assert all(torch.equal(p.grad, grad) for p, grad in zip(parameters[:-1], grads, strict=False))
    assert parameters[-1].grad is None and all(p.grad is grad for p, grad in zip(parameters, owned, strict=True))
    lengths = [[p.numel() for p in bucket] for bucket in writing.in_buckets(parameters)]
    assert lengths == [[3, 8], [25], [1], [2, 9]]
