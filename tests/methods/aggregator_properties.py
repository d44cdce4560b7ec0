"""The promises of every gradient aggregator, as checks of one that is named by its class."""

import io

import pytest
import torch

import mmrepmtl.engine  # noqa: F401  fills the registries
from mmrepmtl.registry import AGGREGATORS

#: Clipping is no part of what is tested here.
SETTINGS = {'NashMTL': dict(max_norm=None), 'FairGrad': dict(max_norm=None)}


def create(name, num_tasks=3, **settings):
    aggregator = AGGREGATORS.build(dict(type=name, **(SETTINGS.get(name, {}) | settings)))
    aggregator.setup(num_tasks)
    return aggregator


def is_random(aggregator) -> bool:
    return hasattr(aggregator, 'generator') or hasattr(aggregator, '_generator')


def gradients(num_tasks=3, size=7, seed=0):
    return torch.randn(num_tasks, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def losses_of(num_tasks=3, seed=0):
    drawn = torch.rand(num_tasks, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 0.5 + drawn


def feed(aggregator, seed=0, num_tasks=3, size=7, scale=1.0, dtype=torch.float64):
    """Gradients as the method wants them: of one batch, (T, P), or of several independent ones, (N, T, P)."""
    drawn = [gradients(num_tasks, size, seed + 100 * i) for i in range(aggregator.num_batches)]
    rows = torch.stack(drawn) if len(drawn) > 1 else drawn[0]
    return (rows * scale).to(dtype)


def last(rows):
    """The gradients that make the step."""
    return rows[-1] if rows.dim() == 3 else rows


def run(aggregator, steps=4, **kwargs):
    """The results of some steps on changing gradients."""
    num_tasks = kwargs.get('num_tasks', 3)
    return [aggregator(feed(aggregator, seed, **kwargs), losses_of(num_tasks, seed)) for seed in range(steps)]


def state_of_tasks(aggregator):
    """Copies of the buffers that hold one entry or row for each task; shape suffixes say which."""
    named = {name: name.rsplit('_', 1)[-1] for name, _ in aggregator.named_buffers()}
    return {name: getattr(aggregator, name).clone() for name, suffix in named.items() if suffix.startswith('T')}


def check_one_task_is_plain_training(name):
    aggregator = create(name, 1)
    rows = feed(aggregator, num_tasks=1)
    combined, weights = aggregator(rows, torch.ones(1, dtype=torch.float64))
    if aggregator.returns == 'gradient':
        assert torch.allclose(combined, last(rows)[0])
    else:  # an optimizer, with the direction of the gradient
        assert torch.equal(combined.sign(), rows[0].sign())
    assert weights is None or torch.allclose(weights, torch.ones(1, dtype=torch.float64))


def check_a_task_without_gradient_is_as_if_it_did_not_exist(name):
    """For the result, for the others' weights, and for its own state."""
    aggregator, other = create(name, 3), create(name, 2)
    present, losses = torch.tensor([0, 2]), losses_of()
    rows = feed(aggregator)
    rows[..., 1, :] = 0
    combined, weights = aggregator(rows, losses)
    want, want_weights = other(rows[..., present, :], losses[present])
    assert torch.allclose(combined, want, rtol=1e-9)
    if weights is not None:
        assert torch.allclose(weights[present], want_weights, rtol=1e-9)


def check_zero_gradients_give_zero(name):
    aggregator = create(name)
    run(aggregator)
    before = state_of_tasks(aggregator)
    combined, weights = aggregator(feed(aggregator) * 0, torch.zeros(3, dtype=torch.float64))
    assert (combined == 0).all() and (weights is None or torch.isfinite(weights).all())
    after = state_of_tasks(aggregator)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(torch.isfinite(result[0]).all() for result in run(aggregator))


def check_the_weights_are_those_that_are_applied(name):
    aggregator = create(name)
    for seed in range(4):
        rows = feed(aggregator, seed)
        combined, weights = aggregator(rows, losses_of(seed=seed))
        assert (weights is not None) == aggregator.has_weights
        if weights is not None:
            assert weights.shape == (3,) and torch.allclose(weights @ last(rows), combined)


def check_a_saved_state_continues_bit_for_bit(name):
    """Also one that is loaded before the number of tasks is told."""
    first = create(name)
    run(first)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    second, third = create(name), AGGREGATORS.build(dict(type=name, **SETTINGS.get(name, {})))
    if is_random(second):
        second(feed(second), losses_of())  # its own random state moves on
    goes_on = run(first)
    for resumed in (second, third):
        buffer.seek(0)
        resumed.load_state_dict(torch.load(buffer, weights_only=True))
        for one, other in zip(goes_on, run(resumed), strict=True):
            assert torch.equal(one[0], other[0]) and (one[1] is None or torch.equal(one[1], other[1]))
        states = first.state_dict(), resumed.state_dict()
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def check_levels_and_heads_are_as_declared(name):
    kind = AGGREGATORS.get(name)
    for level in ('parameter', 'representation'):
        if level in kind.levels:
            assert create(name, level=level).level == level
        else:
            with pytest.raises(ValueError, match=name):
                create(name, level=level)
    if not kind.has_weights:
        with pytest.raises(ValueError, match=name):
            create(name, weight_heads=True)
        return
    for weight_heads in (True, False):
        aggregator = create(name, weight_heads=weight_heads)
        weights = run(aggregator, steps=1)[0][1]
        found = aggregator.head_weights(weights, losses_of())
        assert (found is None) != weight_heads and (found is None or torch.allclose(found, weights))
    assert create(name).weight_heads == kind.weights_heads_by_default


def check_the_gramian_is_all_that_is_needed(name):
    """Gradients of the same inner products, in fewer dimensions, get the same weights."""
    aggregator, other = create(name), create(name)
    for seed in range(4):
        rows = feed(aggregator, seed)
        turned = torch.linalg.qr(rows.T).R.T
        assert turned.shape == (3, 3)
        for found, want in zip(
            other(turned, losses_of(seed=seed))[1], aggregator(rows, losses_of(seed=seed))[1], strict=True
        ):
            assert found == pytest.approx(float(want), rel=1e-8)
