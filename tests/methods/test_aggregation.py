"""Every registered gradient aggregator, by its properties."""

import pytest
import torch

import mmrepmtl.engine  # noqa: F401  fills the registries
from mmrepmtl.methods.aggregation import PCGrad
from mmrepmtl.registry import AGGREGATORS
from tests.engine import reference

NAMES = sorted(AGGREGATORS.module_dict)


def gradients(num_tasks=3, size=7, seed=0):
    return torch.randn(num_tasks, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def combine(name, grads):
    aggregator = AGGREGATORS.build(dict(type=name))
    aggregator.setup(len(grads))
    return aggregator(grads, torch.ones(len(grads), dtype=grads.dtype))


@pytest.mark.parametrize('name', NAMES)
def test_one_task_is_plain_training(name):
    grads = gradients(1)
    assert torch.allclose(combine(name, grads)[0], grads[0])


@pytest.mark.parametrize('name', NAMES)
def test_zero_gradients_stay_finite(name):
    for grads in (torch.zeros(3, 7, dtype=torch.float64), gradients() * torch.tensor([[1.0], [0.0], [1.0]])):
        combined, weights = combine(name, grads)
        assert torch.isfinite(combined).all() and torch.isfinite(weights).all()
        assert (combined == 0).all() == (grads == 0).all()


@pytest.mark.parametrize('scale', [1e-6, 1e6])
@pytest.mark.parametrize('name', NAMES)
def test_scaling_all_gradients_scales_the_result(name, scale):
    grads = gradients()
    assert torch.allclose(combine(name, grads * scale)[0], combine(name, grads)[0] * scale, rtol=1e-9)


@pytest.mark.parametrize('name', NAMES)
def test_the_weights_are_those_that_are_applied(name):
    grads = gradients()
    combined, weights = combine(name, grads)
    assert torch.allclose(weights @ grads, combined)


@pytest.mark.parametrize('name', NAMES)
def test_two_tasks_may_be_swapped(name):
    grads = torch.tensor([[1.0, 0.2], [-1.0, 0.5]], dtype=torch.float64)
    combined, weights = combine(name, grads)
    swapped, swapped_weights = combine(name, grads.flip(0))
    assert torch.allclose(combined, swapped) and torch.allclose(weights, swapped_weights.flip(0))


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
