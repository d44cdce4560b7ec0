"""A loss or gradient that is not finite stops training with a name, or costs one step and nothing else."""

import pytest
import torch
from torch import nn

from tests.engine.test_optim_wrapper import REP, run, wrap
from tests.engine.toy import ToyModel, make_batch, make_model

NAN = float('nan')
SETTINGS = {
    'ew': dict(),
    'rep-mtl': dict(loss_transform='log', regularizers=[REP]),
    'pcgrad': dict(aggregator=dict(type='PCGrad')),
    'pcgrad-z': dict(aggregator=dict(type='PCGrad', level='representation')),
    'uw': dict(weighting=dict(type='UncertaintyWeighting')),
    'dwa': dict(weighting=dict(type='DWA', interval=1)),
    'famo': dict(weighting=dict(type='FAMO')),
}


class Poisoned(torch.autograd.Function):
    """The identity, whose gradient is not a number where the batch says so."""

    @staticmethod
    def forward(ctx, x, poison):
        ctx.poison = poison
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * (NAN if ctx.poison else 1.0), None


class BadGradient(ToyModel):
    """Where c begins with 7, the gradient of head b's bias (``where='head'``) or of task b at Z is not finite."""

    where = 'head'

    def losses(self, inputs, a, b, c):
        poison = bool(c.flatten()[0] == 7)
        z = self.encoder(inputs)
        first, *others = self.heads['b']
        if self.where == 'head':
            out = nn.functional.conv2d(z, first.weight, Poisoned.apply(first.bias, poison), padding=1)
        else:
            out = first(Poisoned.apply(z, poison))
        for module in others:
            out = module(out)
        return dict(
            a=nn.functional.cross_entropy(self.heads['a'](z), a),
            b=(out - b).abs().mean(),
            c=((self.heads['c'](z) - c) ** 2).mean(),
        )


def bad_batch(seed=9):
    batch = make_batch(seed=seed)
    batch['c'].view(-1)[0] = 7
    return batch


def state_of(model, wrapper):
    """Everything that the next step depends on."""
    weights = [p.detach().clone() for p in model.parameters()]
    optimizer = [v.clone() for s in wrapper.optimizer.state.values() for v in s.values() if torch.is_tensor(v)]
    method = list(wrapper.weighting.state_dict().values())
    if wrapper.aggregator is not None:
        method += wrapper.aggregator.state_dict().values()
    return weights + optimizer + [v.nan_to_num().clone() for v in method if torch.is_tensor(v)]


@pytest.mark.parametrize('accumulation', [1, 2])
@pytest.mark.parametrize('name', SETTINGS)
def test_a_loss_that_is_not_finite_costs_one_step_and_nothing_else(name, accumulation):
    model = make_model()
    wrapper = wrap(model, on_nonfinite='skip', accumulative_counts=accumulation, **SETTINGS[name])
    good = [make_batch(seed=i) for i in range(2 * accumulation)]
    run(model, wrapper, good)
    before = state_of(model, wrapper)
    run(model, wrapper, [make_batch(seed=5)] * (accumulation - 1) + [dict(good[0], c=good[0]['c'] * NAN)])
    assert all(torch.equal(p, q) for p, q in zip(before, state_of(model, wrapper), strict=True))
    assert wrapper.message_hub.get_scalar('train/skipped_steps').current() == 1
    other = make_model()
    reference = wrap(other, on_nonfinite='skip', accumulative_counts=accumulation, **SETTINGS[name])
    run(other, reference, good + good)
    run(model, wrapper, good)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize('name', ['ew', 'pcgrad', 'pcgrad-z', 'uw'])
@pytest.mark.parametrize('where', ['head', 'z'])
def test_a_gradient_that_is_not_finite_is_named_or_skipped(name, where):
    model = make_model(cls=BadGradient)
    model.where = where
    wrapper = wrap(model, **SETTINGS[name])
    run(model, wrapper, [make_batch()])
    # Of a gradient that is lost on its way through the shared encoder no single task can be told.
    known = where == 'head' or name.startswith('pcgrad')
    tasks = "task 'b'" if known else r"tasks \['a', 'b', 'c'\]"
    with pytest.raises(FloatingPointError, match=f'the gradient of {tasks} is not finite in iteration 1'):
        run(model, wrapper, [bad_batch()])

    model = make_model(cls=BadGradient)
    model.where = where
    wrapper = wrap(model, on_nonfinite='skip', **SETTINGS[name])
    run(model, wrapper, [make_batch()])
    before = state_of(model, wrapper)
    run(model, wrapper, [bad_batch()])
    assert all(torch.equal(p, q) for p, q in zip(before, state_of(model, wrapper), strict=True))


def test_too_many_skipped_steps_in_a_row_stop_training():
    model = make_model()
    wrapper = wrap(model, on_nonfinite='skip', max_skipped=3)
    bad = dict(make_batch(), c=make_batch()['c'] * NAN)
    run(model, wrapper, [bad, bad, make_batch(), bad, bad])
    with pytest.raises(FloatingPointError, match=r"3 steps in a row were skipped, the last in iteration 5: .*'c'"):
        run(model, wrapper, [bad])


def test_overflows_of_float16_are_errors_only_when_there_are_many_in_a_row():
    model = make_model(dtype=torch.float32)
    wrapper = wrap(model, precision='fp16', max_skipped=3, loss_scale=dict(init_scale=256.0))
    batch = make_batch(dtype=torch.float32)
    bad = dict(batch, c=batch['c'] * 1e30)
    run(model, wrapper, [batch, bad, bad, batch, bad, bad])
    assert wrapper.loss_scaler.get_scale() == 16.0
    with pytest.raises(FloatingPointError, match="3 steps in a row were skipped.*loss of task 'c'"):
        run(model, wrapper, [bad])


def test_the_counts_are_part_of_the_checkpoint():
    model = make_model()
    wrapper = wrap(model, on_nonfinite='skip')
    run(model, wrapper, [make_batch(), dict(make_batch(), c=make_batch()['c'] * NAN)])
    other = wrap(make_model(), on_nonfinite='skip')
    other.load_state_dict(wrapper.state_dict())
    assert other._policy.state_dict() == dict(total=1, in_a_row=1)


@pytest.mark.parametrize('settings', [dict(on_nonfinite='ignore'), dict(max_skipped=0)])
def test_settings_that_do_not_exist(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        wrap(make_model(), **settings)
