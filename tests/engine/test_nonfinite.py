"""A loss or gradient that is not finite stops training with a name, or costs one step and nothing else."""

import pytest
import torch

from mmrepmtl.engine.nonfinite import all_finite
from mmrepmtl.methods.aggregation.state import magnitudes
from tests.engine.harness import run, wrap
from tests.engine.overlays import CASES, ready, settings_of
from tests.engine.toy import NAN, BadGradient, bad_batch, make_batch, make_model

#: Named after their overlays; at Z and at the parameters, with weights or state and without.
GRADIENTS = ('ew', 'uw', 'pcgrad', 'pcgrad@representation', 'graddrop', 'db-mtl', 'nash-mtl', 'mtadam')


def tensors(tree):
    """All tensors and numbers in nested state, copied."""
    if isinstance(tree, (torch.Tensor, int, float)):
        return [torch.as_tensor(tree).detach().nan_to_num().clone()]
    values = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
    return [tensor for value in values for tensor in tensors(value)]


def state_of(model, wrapper):
    """Everything that the next step depends on, and so not the counts of skipped steps."""
    state = wrapper.state_dict()
    del state['multi_task']['skipped']
    return tensors([list(model.parameters()), state['state'], state['multi_task']])


def same(one, other) -> bool:
    return len(one) == len(other) and all(torch.equal(p, q) for p, q in zip(one, other, strict=True))


@pytest.mark.parametrize('place', [0, -1])
@pytest.mark.parametrize('name', CASES)
def test_a_loss_that_is_not_finite_costs_one_step_and_nothing_else(name, place):
    """In the first or the last micro-batch of a window: the whole window is as if it had not been."""
    size = 2 * settings_of(name).get('accumulative_counts', 1)
    build = dict(on_nonfinite='skip', **ready(name, accumulative_counts=size))
    model, other = make_model(), make_model()
    wrapper, reference = wrap(model, **build), wrap(other, **build)
    good = [make_batch(seed=i) for i in range(size)]
    run(model, wrapper, good)
    before = state_of(model, wrapper)
    bad = [make_batch(seed=5) for _ in range(size)]
    bad[place]['c'] *= NAN
    run(model, wrapper, bad)
    assert same(before, state_of(model, wrapper))
    assert wrapper.message_hub.get_scalar('train/skipped_steps').current() == 1
    run(model, wrapper, good)
    run(other, reference, good + good)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize('name', GRADIENTS)
@pytest.mark.parametrize('where', ['head', 'z'])
def test_a_gradient_that_is_not_finite_is_named_or_skipped(name, where):
    model = make_model(cls=BadGradient)
    model.where = where
    wrapper = wrap(model, **ready(name))
    run(model, wrapper, [make_batch()])
    # No single task can be named for a gradient that is lost on its way through the shared encoder.
    known = where == 'head' or wrapper.aggregator is not None
    tasks = "task 'b'" if known else r"tasks \['a', 'b', 'c'\]"
    with pytest.raises(FloatingPointError, match=f'the gradient of {tasks} is not finite in iteration 1'):
        run(model, wrapper, [bad_batch()])


@pytest.mark.parametrize('place', [0, -1])
@pytest.mark.parametrize('name', CASES)
def test_a_gradient_that_is_not_finite_costs_one_step_and_nothing_else(name, place):
    """By then the weighting has seen the losses, and RepMTL the batch: they count a step when it is made."""
    size = 2 * settings_of(name).get('accumulative_counts', 1)
    build = dict(on_nonfinite='skip', **ready(name, accumulative_counts=size))
    for regularizer in build['regularizers']:
        regularizer.update(warmup_iters=8)
    model, other = make_model(cls=BadGradient), make_model(cls=BadGradient)
    wrapper, reference = wrap(model, **build), wrap(other, **build)
    good = [make_batch(seed=i) for i in range(size)]
    run(model, wrapper, good)
    before = state_of(model, wrapper)
    bad = [make_batch(seed=5) for _ in range(size)]
    bad[place] = bad_batch()
    run(model, wrapper, bad)
    assert same(before, state_of(model, wrapper))
    run(model, wrapper, good)
    run(other, reference, good + good)
    assert same(state_of(model, wrapper), state_of(other, reference))


def test_an_overflow_of_float16_is_no_step_of_any_method():
    model = make_model(cls=BadGradient, dtype=torch.float32)
    settings = ready('dwa', regularizers=[dict(type='RepMTL', warmup_iters=8)], precision='fp16')
    wrapper = wrap(model, loss_scale=dict(init_scale=256.0), **settings)
    run(model, wrapper, [make_batch(dtype=torch.float32)])
    before = state_of(model, wrapper)
    bad = bad_batch()
    run(model, wrapper, [{key: value.float() if value.is_floating_point() else value for key, value in bad.items()}])
    assert wrapper.precision.scale == 128.0
    assert same(before, state_of(model, wrapper))
    assert wrapper.regularizers[0].num_steps == 1 and wrapper.weighting.step_count == 1


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
    assert wrapper.precision.scaler.get_scale() == 16.0
    with pytest.raises(FloatingPointError, match="3 steps in a row were skipped.*loss of task 'c'"):
        run(model, wrapper, [bad])


def test_the_scale_of_float16_grows_after_so_many_steps_in_a_row():
    model = make_model(dtype=torch.float32)
    wrapper = wrap(model, precision='fp16', loss_scale=dict(init_scale=256.0, growth_interval=2))
    batch = make_batch(dtype=torch.float32)
    scales = []
    for each in (batch, dict(batch, c=batch['c'] * 1e30), batch, batch):
        run(model, wrapper, [each])
        scales.append(wrapper.precision.scale)
    assert scales == [256.0, 128.0, 128.0, 256.0]


def test_the_counts_are_part_of_the_checkpoint():
    model = make_model()
    wrapper = wrap(model, on_nonfinite='skip')
    run(model, wrapper, [make_batch(), dict(make_batch(), c=make_batch()['c'] * NAN)])
    other = wrap(make_model(), on_nonfinite='skip')
    other.load_state_dict(wrapper.state_dict())
    assert other.policy.state_dict() == dict(total=1, in_a_row=1)


@pytest.mark.parametrize('settings', [dict(on_nonfinite='ignore'), dict(max_skipped=0)])
def test_settings_that_do_not_exist(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        wrap(make_model(), **settings)


@pytest.mark.parametrize('value, finite', [(1e25, True), (-3e38, True), (NAN, False), (float('inf'), False)])
def test_gradients_whose_squares_leave_float32_are_finite(value, finite):
    bad = torch.ones(5, dtype=torch.float32)
    bad[3] = value
    assert all_finite([torch.zeros(2, 3), bad]) == finite
    assert bool(torch.isfinite(magnitudes(torch.stack([torch.ones(5), bad]))[1])) == finite
    assert all_finite([])
