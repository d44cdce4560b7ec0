"""RepMTL(target_ratio=...) in the trainer: the ratio is held, at no extra pass, whatever happens to a step."""

import json
import math

import pytest
import torch

from mmrepmtl.methods.target_ratio import HORIZON, MAX_GROWTH, TargetRatio
from tests.engine.harness import run, wrap
from tests.engine.toy import (
    NAN,
    BadGradient,
    OwnSamples,
    ToyModel,
    bad_batch,
    make_batch,
    make_model,
    max_difference,
    split,
)

TARGET = 0.05


def settings(lambda_tsr=0.9, lambda_csa=0.9, target_ratio=TARGET, **arguments):
    regularizer = dict(
        type='RepMTL', lambda_tsr=lambda_tsr, lambda_csa=lambda_csa, target_ratio=target_ratio, **arguments
    )
    return dict(loss_transform='log', regularizers=[regularizer], diagnostics_interval=1)


def train(batches, model=None, lr=0.02, **changes):
    """Trains the toy; returns model, wrapper, logs and the gradient ratio of each iteration."""
    model = model or make_model()
    wrapper = wrap(model, lr=lr, momentum=0.0, **changes)
    logs, ratios = [], []
    name = 'train/penalty/grad_ratio' if wrapper.aggregator else 'train/rep_mtl/grad_ratio'
    for batch in batches:
        logs += run(model, wrapper, [batch])
        ratios.append(wrapper.message_hub.get_scalar(name).current())
    return model, wrapper, logs, ratios


BATCHES = [make_batch(seed=seed) for seed in range(40)]


class Levels(ToyModel):
    """The heads read two levels each, of different size of gradient."""

    class Encoder(torch.nn.Module):
        def __init__(self, layers):
            super().__init__()
            self.layers = layers

        def forward(self, x):
            z = self.layers(x)
            return [z, z.tanh() * 2]

    def __init__(self):
        super().__init__()
        self.encoder = self.Encoder(self.encoder)

    def losses(self, inputs, a, b, c):
        low, high = self.encoder(inputs)
        out = {task: self.heads[task](low + 0.5 * high) for task in self.tasks}
        return dict(
            a=torch.nn.functional.cross_entropy(out['a'], a),
            b=(out['b'] - b).abs().mean(),
            c=((out['c'] - c) ** 2).mean(),
        )


@pytest.mark.filterwarnings('ignore:RepMTL')
@pytest.mark.parametrize('through', ['all', 'representation'])
@pytest.mark.parametrize('weights', [(1e-3, 1e-3), (0.9, 0.9), (1e3, 1e3)])
def test_the_ratio_is_held_whatever_the_weights(through, weights):
    model, _, logs, ratios = train(BATCHES, **settings(*weights, through=through))
    assert ratios[0] == pytest.approx(TARGET, rel=1e-5)
    assert sum(ratios) / len(ratios) == pytest.approx(TARGET, rel=0.15)
    assert all(0.3 * TARGET < ratio < 3 * TARGET for ratio in ratios)
    scales = [log['rep_mtl/scale'] for log in logs]
    assert len(set(scales)) > len(scales) / 2
    other = train(BATCHES, **settings(0.3, 0.3, through=through))
    assert max_difference(model, other[0]) < 1e-5
    assert other[2][-1]['rep_mtl/scale'] * 0.3 == pytest.approx(scales[-1] * weights[0], rel=1e-4)


@pytest.mark.filterwarnings('ignore:RepMTL')
@pytest.mark.parametrize('through', ['all', 'representation'])
def test_the_scale_is_that_of_fixed_weights_with_the_same_result(through):
    """One step after two of the same batch at learning rate 0: the penalty is the fixed one times the scale."""
    target, fixed = make_model(), make_model()
    wrapper = wrap(target, lr=0.0, momentum=0.0, **settings(0.4, 0.7, through=through))
    run(target, wrapper, BATCHES[:1] * 2)
    scale = run(target, wrapper, BATCHES[:1])[0]['rep_mtl/scale']
    weights = dict(lambda_tsr=0.4 * scale, lambda_csa=0.7 * scale, target_ratio=None, through=through)
    run(fixed, wrap(fixed, lr=0.0, momentum=0.0, **settings(**weights)), BATCHES[:1])
    for mine, other in zip(target.parameters(), fixed.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-9)


@pytest.mark.filterwarnings('ignore:RepMTL')
@pytest.mark.parametrize('case', ['levels', 'domains', 'rows', 'pcgrad', 'pcgrad-z', 'accumulation', 'uw', 'no log'])
def test_the_ratio_is_held_in_every_kind_of_step(case):
    model, batches, changes = make_model(), BATCHES, settings()
    if case == 'levels':
        model = make_model(cls=Levels)
    elif case in ('domains', 'rows'):
        model, batches = make_model(cls=OwnSamples), [make_batch(9, seed) for seed in range(40)]
        model.encoder_forward = 'per_task' if case == 'domains' else 'concat'
        changes = settings(shared_samples=False)
    elif case.startswith('pcgrad'):
        level = 'representation' if case == 'pcgrad-z' else 'parameter'
        changes |= dict(aggregator=dict(type='PCGrad', level=level))
    elif case == 'accumulation':
        changes |= dict(accumulative_counts=4)
    elif case == 'uw':
        changes |= dict(loss_transform=None, weighting=dict(type='UncertaintyWeighting'))
    elif case == 'no log':
        changes |= dict(loss_transform=None)
    wrapper, ratios = train(batches, model, **changes)[1::2]
    assert wrapper.regularizers[0].strength.known
    assert sum(ratios) / len(ratios) == pytest.approx(TARGET, rel=0.2)


@pytest.mark.filterwarnings('ignore:RepMTL')
@pytest.mark.parametrize('through', ['all', 'representation'])
def test_interval_and_warmup(through):
    *_, ratios = train(BATCHES, **settings(interval=4, through=through))
    assert sum(ratios[::4]) / len(ratios[::4]) == pytest.approx(4 * TARGET, rel=0.2)
    *_, ratios = train(BATCHES, **settings(warmup_iters=20, through=through))
    parts = [min(1, step / 20) * TARGET for step in range(40)]
    assert ratios[0] == 0
    assert all(0.3 * part <= ratio <= 3 * part for part, ratio in zip(parts, ratios, strict=True))
    assert sum(ratios) == pytest.approx(sum(parts), rel=0.2)


@pytest.mark.filterwarnings('ignore:RepMTL')
@pytest.mark.parametrize('through', ['all', 'representation'])
def test_no_pass_is_added(through, monkeypatch):
    """Counts the traversals; that through all saves one in its first step, which has none of the heads' second ones."""
    calls = []
    for name in ('grad', 'backward'):
        original = getattr(torch.autograd, name)

        def counted(*args, _original=original, _name=name, **kwargs):
            calls.append(_name)
            return _original(*args, **kwargs)

        monkeypatch.setattr(torch.autograd, name, counted)

    def count(target_ratio):
        model = make_model()
        wrapper = wrap(model, **settings(target_ratio=target_ratio, through=through))
        found = []
        for batch in BATCHES[:5]:
            calls.clear()
            run(model, wrapper, [batch])
            found.append(len(calls))
        return found

    assert count(TARGET)[1:] == count(None)[1:]


@pytest.mark.filterwarnings('ignore:RepMTL')
@pytest.mark.parametrize('through', ['all', 'representation'])
@pytest.mark.parametrize('precision', ['fp16', 'bf16'])
def test_low_precision_holds_the_ratio_at_any_scale_of_the_losses(through, precision):
    batches = [make_batch(seed=seed, dtype=torch.float32) for seed in range(30)]

    def result(**changes):
        model = make_model(dtype=torch.float32)
        *_, logs, ratios = train(batches, model, **settings(through=through), **changes)
        assert sum(ratios) / len(ratios) == pytest.approx(TARGET, rel=0.2)
        return [log['rep_mtl/scale'] for log in logs]

    plain = result()
    found = result(precision=precision, loss_scale=dict(init_scale=2.0**10))
    assert found[-1] == pytest.approx(plain[-1], rel=0.2)
    if precision == 'fp16':
        assert result(precision=precision, loss_scale=dict(init_scale=2.0**6)) == pytest.approx(found, rel=0.1)


@pytest.mark.filterwarnings('ignore:RepMTL')
def test_a_share_below_the_precision_of_z_is_measured_before_the_backward():
    """In bfloat16 rounding is 0.4 % of a gradient, and so is the penalty early in this warm-up."""

    def scale(**changes):
        model = make_model(dtype=torch.float32)
        batches = [make_batch(seed=seed, dtype=torch.float32) for seed in range(20)]
        return train(batches, model, lr=0.0, **settings(warmup_iters=1000), **changes)[2][-1]['rep_mtl/scale']

    assert scale(precision='bf16') == pytest.approx(scale(), rel=0.25)


@pytest.mark.filterwarnings('ignore:RepMTL')
@pytest.mark.parametrize('through', ['all', 'representation'])
def test_a_skipped_step_leaves_no_trace(through):
    def state(batches):
        model = make_model(cls=BadGradient)
        model.where = 'head'
        changes = settings(through=through) | dict(on_nonfinite='skip', accumulative_counts=2)
        wrapper = train(batches, model, **changes)[1]
        return wrapper.regularizers[0].strength.state_dict() | {
            name: p.detach() for name, p in model.named_parameters()
        }

    first, second, good, bad = BATCHES[:2], BATCHES[2:4], BATCHES[5], bad_batch()
    expected = state([*first, *second])
    found = state([*first, good, bad, *second])
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.filterwarnings('ignore:RepMTL')
def test_a_window_is_as_one_batch():
    """TSR alone, whose value for a batch is the mean over its parts: the ratios agree but for the parts' log losses."""
    wholes = [make_batch(8, seed) for seed in range(10)]
    halves = [half for whole in wholes for half in split(whole, [4, 4])]
    one = train(wholes, lr=0.0, **settings(lambda_csa=0))[1].regularizers[0].strength
    two = train(halves, lr=0.0, **settings(lambda_csa=0), accumulative_counts=2)[1].regularizers[0].strength
    assert two.count == one.count == 10
    assert float(two.mean) == pytest.approx(float(one.mean), rel=0.05)


def test_another_penalty_is_refused_through_all_and_is_no_matter_through_z():
    class Extra(ToyModel):
        def forward(self, inputs, a, b, c, mode='loss'):
            found = super().forward(inputs, a, b, c)
            return found | {'extra_loss': 0.1 * found['b.loss'].square()}

    def ratios(through):
        return train(BATCHES[:10], make_model(cls=Extra), extra_losses='add', **settings(through=through))[3]

    with pytest.raises(ValueError, match="target_ratio with through='all'.*through='representation'"):
        ratios('all')
    assert sum(ratios('representation')) / 10 == pytest.approx(TARGET, rel=0.2)


@pytest.mark.parametrize('value', [0, -1, math.inf, NAN])
def test_what_is_no_ratio_is_refused(value):
    with pytest.raises(ValueError, match='target_ratio must be a positive number or None'):
        wrap(make_model(), **settings(target_ratio=value))


def test_the_average_and_its_bounds():
    strength = TargetRatio(0.1)

    def step(penalty, tasks=1.0):
        strength.begin(torch.zeros(()), None)
        strength.add(torch.tensor([penalty**2 / 2, tasks**2 / 2]))
        strength.add(torch.tensor([penalty**2 / 2, tasks**2 / 2]))
        strength.end_step()

    assert not strength.known
    assert float(strength.scale_of(torch.tensor([4.0, 1.0]))) == pytest.approx(0.05)
    assert float(strength.scale_of(torch.tensor([0.0, 1.0]))) == 0
    step(1.0)
    step(3.0)
    assert strength.known and float(strength.scale()) == pytest.approx(0.1 / 2)
    for broken in (dict(penalty=math.inf), dict(penalty=NAN), dict(penalty=1.0, tasks=0.0)):
        step(**broken)
    assert strength.count == 2 and float(strength.scale()) == pytest.approx(0.1 / 2)
    strength.end_step()  # a step without a penalty
    assert strength.count == 2
    for _ in range(20 * HORIZON):
        step(2.0)
    assert float(strength.mean) == pytest.approx(2, rel=1e-3)
    for _ in range(HORIZON):
        step(4.0)
    assert float(strength.mean) == pytest.approx(4 - 2 * (1 - 1 / HORIZON) ** HORIZON, rel=1e-2)
    for _ in range(20 * HORIZON):
        step(0.0)
    assert float(strength.scale()) == pytest.approx(MAX_GROWTH * 0.1 / float(strength.overall), rel=1e-5)


def test_a_checkpoint_from_before_the_argument_is_that_of_fixed_weights():
    fixed = settings(target_ratio=None)
    wrapper = wrap(make_model(), **fixed)
    state = wrapper.state_dict()
    signature = json.loads(state['multi_task']['signature'])
    assert signature['regularizers'][0].pop('target_ratio') is None
    state['multi_task']['signature'] = json.dumps(signature)
    wrap(make_model(), **fixed).load_state_dict(dict(state))
    with pytest.raises(RuntimeError, match='the checkpoint belongs to another run .regularizers'):
        wrap(make_model(), **settings()).load_state_dict(dict(state))
