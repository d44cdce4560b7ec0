"""Every registered gradient aggregator, by its properties."""

import pytest
import torch

import mmrepmtl.engine  # noqa: F401  fills the registries
from mmrepmtl.methods.aggregation import GramianAggregator, PCGrad
from mmrepmtl.registry import AGGREGATORS
from tests.engine import reference
from tests.methods.aggregator_properties import (
    SETTINGS,
    check_a_saved_state_continues_bit_for_bit,
    check_a_task_without_gradient_is_as_if_it_did_not_exist,
    check_levels_and_heads_are_as_declared,
    check_one_task_is_plain_training,
    check_the_gramian_is_all_that_is_needed,
    check_the_weights_are_those_that_are_applied,
    check_zero_gradients_give_zero,
    create,
    feed,
    gradients,
    losses_of,
    run,
    state_of_tasks,
)

#: All but TorchJD, which is a method only with the name of a weighting; test_torchjd_adapter.py runs these tests on it.
NAMES = sorted(set(AGGREGATORS.module_dict) - {'TorchJD'})

#: The first task is treated apart from the others by definition.
ANCHORED = {'MTAdam', 'MetaBalance'}

#: By which power of a common factor of all gradients the result is multiplied; 1 where not named. An update is in units
#: of the learning rate; alpha is 2 for FairGrad.
POWERS = {'MTAdam': 0, 'NashMTL': 0, 'FairGrad': -1 / 3}


@pytest.mark.parametrize('name', NAMES)
def test_one_task_is_plain_training(name):
    check_one_task_is_plain_training(name)


@pytest.mark.parametrize('name', NAMES)
def test_a_task_without_gradient_is_as_if_it_did_not_exist(name):
    check_a_task_without_gradient_is_as_if_it_did_not_exist(name)


@pytest.mark.parametrize('name', NAMES)
def test_a_task_without_gradient_keeps_its_state(name):
    aggregator = create(name)
    run(aggregator)
    before = state_of_tasks(aggregator)
    rows = feed(aggregator, seed=9)
    rows[..., 1, :] = 0
    combined, _ = aggregator(rows, losses_of())
    after = state_of_tasks(aggregator)
    assert torch.isfinite(combined).all()
    for key in before:
        assert torch.equal(before[key][1], after[key][1]), key


@pytest.mark.parametrize('name', NAMES)
def test_zero_gradients_give_zero(name):
    check_zero_gradients_give_zero(name)


@pytest.mark.parametrize('scale', [1e-6, 1e6])
@pytest.mark.parametrize('name', NAMES)
def test_scaling_all_gradients_scales_the_result(name, scale):
    power = POWERS.get(name, 1)
    for plain, scaled in zip(run(create(name)), run(create(name), scale=scale), strict=True):
        assert torch.allclose(scaled[0], plain[0] * scale**power, rtol=1e-7, atol=1e-9 * scale**power)


@pytest.mark.parametrize('scale', [1e-6, 1e6])
@pytest.mark.parametrize('name', NAMES)
def test_the_only_task_with_a_gradient_scales_like_several(name, scale):
    """A batch with labels for one of three tasks is no step in another unit."""
    plain, scaled, factor = create(name), create(name), scale ** POWERS.get(name, 1)
    for seed in range(4):
        rows, losses = feed(plain, seed), losses_of(seed=seed)
        if seed:
            rows[..., [0, 2], :] = 0
        want = plain(rows, losses)[0] * factor
        assert torch.allclose(scaled(rows * scale, losses)[0], want, rtol=1e-7, atol=1e-9 * factor)


#: Visit the tasks in a random order, which is another one for other places: two tasks are swapped below.
VISITING = {'PCGrad', 'GradVac'}
ORDERS = [(name, order) for name in NAMES if name not in VISITING for order in ((0, 2, 1), (1, 0, 2), (2, 0, 1))]


@pytest.mark.parametrize('name, order', [(n, o) for n, o in ORDERS if n not in ANCHORED or o[0] == 0])
def test_tasks_may_be_permuted(name, order):
    first, second = create(name), create(name)
    for seed in range(4):
        rows, losses = feed(first, seed), losses_of(seed=seed)
        combined, weights = first(rows, losses)
        permuted, permuted_weights = second(rows[..., list(order), :], losses[list(order)])
        assert torch.allclose(combined, permuted, rtol=1e-7, atol=1e-9)
        assert weights is None or torch.allclose(weights[list(order)], permuted_weights, rtol=1e-7)


@pytest.mark.parametrize('name', [name for name in NAMES if name not in ANCHORED])
def test_two_tasks_may_be_swapped(name):
    first, second = create(name, 2), create(name, 2)
    for seed in range(4):
        rows, losses = feed(first, seed, num_tasks=2), losses_of(2, seed)
        combined, weights = first(rows, losses)
        swapped, swapped_weights = second(rows.flip(-2), losses.flip(0))
        assert torch.allclose(combined, swapped, rtol=1e-7, atol=1e-9)
        assert weights is None or torch.allclose(weights, swapped_weights.flip(0), rtol=1e-7)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('scale', [1e-8, 1e8])
@pytest.mark.parametrize('name', NAMES)
def test_extreme_norms_stay_finite(name, scale, dtype):
    """All gradients of norm 1e-8 or 1e8, and tasks 1e4 apart."""
    for factors in ([1.0, 1.0, 1.0], [1.0, 1e-4, 1e-2]):
        factors = scale * torch.tensor(factors, dtype=torch.float64)[:, None]
        for combined, weights in run(create(name), scale=factors, dtype=dtype):
            assert combined.dtype == dtype and torch.isfinite(combined).all() and (combined != 0).any()
            assert weights is None or torch.isfinite(weights).all()


@pytest.mark.parametrize('scale', [1e-6, 1.0, 1e6])
@pytest.mark.parametrize('name', [name for name in NAMES if name != 'GradDrop'])  # which draws other numbers
def test_float32_gradients_of_tasks_far_apart_are_combined_exactly(name, scale):
    """At most 1e-4 from the result in float64, at any scale of the losses and with tasks 1e4 apart."""
    for factors in ([1.0, 1.0, 1.0], [1.0, 1e-4, 1e-2], [1.0, 1e4, 1.0]):
        factors = scale * torch.tensor(factors, dtype=torch.float64)[:, None]
        exact, rounded = create(name), create(name)
        for seed in range(3):
            rows = feed(exact, seed, scale=factors, dtype=torch.float32)
            want, found = exact(rows.double(), losses_of(seed=seed))[0], rounded(rows, losses_of(seed=seed))[0]
            assert found.dtype == torch.float32 and (found.double() - want).norm() <= 1e-4 * want.norm()


@pytest.mark.parametrize('name', NAMES)
def test_no_setup_is_needed(name):
    """As in a plain loop: ``aggregator(gradients_TP, losses_T)``."""
    aggregator, other = AGGREGATORS.get(name)(), create(name, **dict.fromkeys(SETTINGS.get(name, {}), 1.0))
    rows = gradients()
    assert torch.equal(aggregator(rows, losses_of())[0], other(rows, losses_of())[0])


@pytest.mark.parametrize('name', NAMES)
def test_the_weights_are_those_that_are_applied(name):
    check_the_weights_are_those_that_are_applied(name)


@pytest.mark.parametrize('name', NAMES)
def test_a_saved_state_continues_bit_for_bit(name):
    check_a_saved_state_continues_bit_for_bit(name)


@pytest.mark.parametrize('name', NAMES)
def test_equal_methods_give_equal_results(name):
    for one, other in zip(run(create(name)), run(create(name)), strict=True):
        assert torch.equal(one[0], other[0])


@pytest.mark.parametrize('name', NAMES)
def test_setup_changes_nothing_once_there_is_state(name):
    aggregator, other = create(name), create(name)
    run(aggregator)
    run(other)
    aggregator.setup(3)
    for one, two in zip(run(aggregator), run(other), strict=True):
        assert torch.equal(one[0], two[0])


@pytest.mark.parametrize('name', NAMES)
def test_levels_and_heads_are_as_declared(name):
    check_levels_and_heads_are_as_declared(name)


@pytest.mark.parametrize('name', [n for n in NAMES if issubclass(AGGREGATORS.get(n), GramianAggregator)])
def test_the_gramian_is_all_that_is_needed(name):
    check_the_gramian_is_all_that_is_needed(name)


def test_not_finite_gradients_are_no_absent_ones():
    bad = gradients()
    bad[1, 2] = float('nan')
    for name in NAMES:
        aggregator = create(name)
        if isinstance(aggregator, GramianAggregator):
            with pytest.raises(ValueError, match='not finite'):
                aggregator(bad, losses_of())


def test_pcgrad_equals_the_algorithm_on_full_gradients():
    for seed in range(20):
        grads = gradients(4, 5, seed)
        expected = reference.pcgrad(grads, torch.Generator().manual_seed(0))
        assert torch.allclose(PCGrad()(grads, torch.ones(4))[0], expected, rtol=1e-12)


def test_pcgrad_leaves_what_does_not_conflict_and_cancels_what_is_opposed():
    orthogonal = torch.eye(3, dtype=torch.float64)
    assert torch.allclose(PCGrad()(orthogonal, torch.ones(3))[0], orthogonal.sum(0))
    opposed = torch.tensor([[1.0, 0.0], [-2.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(PCGrad()(opposed, torch.ones(2))[0], torch.zeros(2, dtype=torch.float64))
    grads = torch.tensor([[1.0, 0.2], [-1.0, 0.5]], dtype=torch.float64)
    combined = PCGrad()(grads, torch.ones(2))[0]
    assert (grads @ combined >= -1e-12).all()


def test_pcgrad_resumes_its_random_orders():
    grads, losses = gradients(5, 4), torch.ones(5)
    first = PCGrad(seed=1)
    first(grads, losses)
    second = PCGrad(seed=2)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(grads, losses)[0], second(grads, losses)[0])
