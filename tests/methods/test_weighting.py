"""Every registered weighting, by its properties."""

import pytest
import torch

import mmrepmtl.engine  # noqa: F401  fills the registries
from mmrepmtl.methods.weighting import EqualWeighting, UncertaintyWeighting
from mmrepmtl.registry import WEIGHTINGS

NAMES = sorted(WEIGHTINGS.module_dict)
LOSSES = torch.tensor([0.5, 2.0, 30.0], dtype=torch.float64)


def build(name, num_tasks=3):
    weighting = WEIGHTINGS.build(dict(type=name))
    weighting.setup(num_tasks)
    weighting.setup(num_tasks)
    return weighting.double()


def weights(weighting, losses, labelled=None):
    leaf = losses.clone().requires_grad_()
    scalar = weighting(leaf, labelled)
    return scalar, torch.autograd.grad(scalar, leaf)[0]


@pytest.mark.parametrize('name', NAMES)
def test_the_order_of_the_tasks_does_not_matter(name):
    order = torch.tensor([2, 0, 1])
    scalar, w = weights(build(name), LOSSES)
    permuted, w_permuted = weights(build(name), LOSSES[order])
    assert torch.allclose(scalar, permuted) and torch.allclose(w[order], w_permuted)


@pytest.mark.parametrize('name', NAMES)
def test_every_task_gets_a_positive_weight(name):
    scalar, w = weights(build(name), LOSSES)
    assert scalar.shape == () and torch.isfinite(scalar) and (w > 0).all()


@pytest.mark.parametrize('name', NAMES)
def test_an_unlabelled_task_changes_nothing_for_the_others(name):
    labelled = torch.tensor([True, False, True])
    weighting = build(name)
    scalar, w = weights(weighting, torch.where(labelled, LOSSES, 0.0), labelled)
    alone, w_alone = weights(build(name, 2), LOSSES[labelled])
    assert torch.allclose(scalar, alone) and torch.allclose(w[labelled], w_alone) and w[1] == 0
    for parameter in weighting.parameters():
        (grad,) = torch.autograd.grad(weighting(LOSSES, labelled), parameter)
        assert grad[1] == 0 and (grad[0] != 0 or grad[2] != 0)


def test_equal_weighting_is_the_sum():
    assert EqualWeighting()(LOSSES) == 32.5


def test_uncertainty_weighting_learns_the_log_of_each_loss():
    """The minimum over s of L exp(-s) / 2 + s / 2 is at s = ln L."""
    weighting = UncertaintyWeighting(3).double()
    weighting.log_variance_T.data = LOSSES.log()
    (gradient,) = torch.autograd.grad(weighting(LOSSES), weighting.log_variance_T)
    assert gradient.abs().max() < 1e-12
    weighting.log_variance_T.data = LOSSES.log() + torch.tensor([0.1, -0.1, 0.1])
    (gradient,) = torch.autograd.grad(weighting(LOSSES), weighting.log_variance_T)
    assert (gradient > 0).tolist() == [True, False, True]
