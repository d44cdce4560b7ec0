"""Aggregators that need full gradients or keep state of their size, each against its slow version."""

import pytest
import torch

from mmrepmtl.methods.aggregation import DBMTL, ExcessMTL, GradDrop, MetaBalance, MoCo, MTAdam
from tests.methods import stateful_reference as reference
from tests.methods.stateful_reference import SIZES, build, history, run, saved


@pytest.mark.parametrize('decay', [0.0, 0.5])
@pytest.mark.parametrize('beta', [0.0, 0.9])
def test_db_mtl_is_the_bias_corrected_average_at_the_largest_norm(beta, decay):
    gradients, losses = history()
    aggregator = build(DBMTL, beta=beta, beta_decay=decay)
    for k in range(len(gradients)):
        combined, weights = aggregator(gradients[k], losses[k])
        expected = reference.db_mtl(gradients[: k + 1], losses[: k + 1], beta, decay)
        assert weights is None and torch.allclose(combined, expected, rtol=1e-11, atol=0)


def test_db_mtl_gives_orthogonal_tasks_the_same_norm_and_the_first_step_its_full_size():
    gradients = torch.diag(torch.tensor([2.0, 300.0, 0.01], dtype=torch.float64))
    losses = torch.tensor([4.0, 100.0, 0.01], dtype=torch.float64)
    aggregator = DBMTL()
    for _ in range(3):
        assert torch.allclose(aggregator(gradients, losses)[0], torch.full((3,), 3.0, dtype=torch.float64))


@pytest.mark.parametrize('scale', [1e-6, 1e6])
def test_db_mtl_does_not_see_the_scale_of_a_loss(scale):
    gradients, losses = history()
    factors = torch.tensor([1.0, scale, 1.0], dtype=torch.float64)
    plain = run(build(DBMTL), gradients, losses)
    scaled = run(build(DBMTL), gradients * factors[:, None], losses * factors)
    for a, b in zip(plain, scaled, strict=True):
        assert torch.allclose(a, b, rtol=1e-10)


@pytest.mark.parametrize('bad', [0.0, -2.0])
def test_db_mtl_refuses_a_loss_without_a_logarithm(bad):
    gradients, losses = history(missing=False)
    losses[0, 1] = bad
    aggregator = build(DBMTL)
    with pytest.raises(ValueError, match='task 1'):
        aggregator(gradients[0], losses[0])
    assert not list(aggregator.buffers())
    gradients[0, 1] = 0  # unlabelled: its loss means nothing
    aggregator(gradients[0], losses[0])


def test_db_mtl_trains_the_heads_on_log_losses():
    losses = torch.tensor([2.0, 0.0, 1e-6])
    assert torch.allclose(DBMTL().head_weights(None, losses), torch.tensor([0.5, 0.0, 1e6]))
    assert DBMTL.loss_transform == 'own'


@pytest.mark.parametrize('rho', [0.0, 0.3])
def test_moco_tracks_gradients_and_moves_the_weights_as_its_algorithm(rho):
    gradients, losses = history()
    arguments = dict(beta=0.5, beta_decay=0.4, gamma=0.7, gamma_decay=0.2, rho=rho)
    aggregator = build(MoCo, **arguments)
    for k in range(len(gradients)):
        expected = reference.moco(gradients[: k + 1], **arguments)
        assert torch.allclose(aggregator(gradients[k], losses[k])[0], expected, rtol=1e-9, atol=1e-12)
        assert torch.allclose(aggregator.lambda_T.sum(), torch.tensor(1.0, dtype=torch.float64))


def test_moco_reaches_the_point_of_least_norm():
    gradients = torch.tensor([[2.0, 0.0], [-0.5, 1.0]], dtype=torch.float64)
    aggregator = MoCo(gamma=0.5, gamma_decay=0.0)
    for _ in range(300):
        combined = aggregator(gradients, torch.ones(2))[0]
    difference = gradients[0] - gradients[1]
    share = -(gradients[1] @ difference) / (difference @ difference)
    assert torch.allclose(combined, gradients[1] + share * difference, rtol=1e-8)


def test_excess_mtl_multiplies_weights_by_the_exponential_of_the_relative_excess_risk():
    gradients, losses = history()
    gradients[:, 1, :5] = 0  # parameters that a task does not reach
    aggregator = build(ExcessMTL, eta=0.3)
    for k in range(len(gradients)):
        combined, weights = aggregator(gradients[k], losses[k])
        expected, expected_weights = reference.excess_mtl(gradients[: k + 1], eta=0.3)
        assert torch.allclose(weights, expected_weights, rtol=1e-11)
        assert torch.allclose(combined, expected, rtol=1e-11)
        assert aggregator.head_weights(weights, losses[k]) is weights
    assert ExcessMTL(weight_heads=False).head_weights(weights, losses[0]) is None


def test_excess_mtl_begins_with_the_plain_sum_and_does_not_see_the_scale_of_a_loss():
    gradients, losses = history(missing=False)
    factors = torch.tensor([1e6, 1.0, 1e-6], dtype=torch.float64)
    plain, scaled = build(ExcessMTL, eta=0.5), build(ExcessMTL, eta=0.5)
    for k in range(len(gradients)):
        combined, weights = plain(gradients[k], losses[k])
        assert k > 0 or torch.equal(combined, gradients[0].sum(0))
        assert torch.allclose(weights, scaled(gradients[k] * factors[:, None], losses[k])[1], rtol=1e-10)


@pytest.mark.parametrize('strategy', ['both', 'reduce', 'enlarge'])
@pytest.mark.parametrize('target', [0, 2])
def test_metabalance_scales_to_the_targets_average_norm_in_each_layer(strategy, target):
    gradients, losses = history()
    gradients[:, target, :4] = 0  # the target never reaches the first layer
    gradients[1, 1, 4] = 0
    aggregator = build(MetaBalance, target=target, relax=0.6, beta=0.8, strategy=strategy)
    for k in range(len(gradients)):
        expected = reference.metabalance(gradients[: k + 1], SIZES, target, 0.6, 0.8, strategy)
        assert torch.allclose(aggregator(gradients[k], losses[k])[0], expected, rtol=1e-11)


def test_metabalance_makes_norms_equal_without_relaxation_and_leaves_them_without_balance():
    gradients, losses = torch.diag(torch.tensor([2.0, 300.0, 0.01])), torch.ones(3)
    assert torch.allclose(MetaBalance(relax=1.0)(gradients, losses)[0], torch.full((3,), 2.0))
    assert torch.allclose(MetaBalance(relax=0.0)(gradients, losses)[0], gradients.sum(0))
    with pytest.raises(ValueError, match='target .* 3 tasks, got 3'):
        MetaBalance(target=3)(gradients, losses)


def test_mtadam_of_one_task_is_adam():
    gradients = torch.randn(6, 1, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients[2, :, :4] = 0
    parameters = [torch.zeros(size, dtype=torch.float64, requires_grad=True) for size in SIZES]
    units = [part.norm() / part.numel() ** 0.5 for part in gradients[0, 0].split(SIZES)]
    groups = [dict(params=[p], eps=0.1 * unit.item()) for p, unit in zip(parameters, units, strict=True)]
    adam = torch.optim.Adam(groups, lr=0.01)
    aggregator = build(MTAdam, eps=0.1)
    for step in gradients:
        before = torch.cat([p.detach().clone() for p in parameters])
        for p, part in zip(parameters, step[0].split(SIZES), strict=True):
            p.grad = part.clone()
        adam.step()
        made = (before - torch.cat([p.detach() for p in parameters])) / 0.01
        assert torch.allclose(aggregator(step, torch.ones(1))[0], made, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize('with_extra', [False, True])
def test_mtadam_balances_to_the_anchor_and_divides_by_the_largest_second_moment(with_extra):
    gradients, losses = history()
    gradients[:4, 0, 4] = 0  # the anchor comes late to the second layer, too
    extras = torch.randn(8, 11, generator=torch.Generator().manual_seed(2), dtype=torch.float64) if with_extra else None
    aggregator = build(MTAdam, betas=(0.8, 0.95, 0.7), eps=1e-2)
    for k in range(len(gradients)):
        args = (extras[k],) if with_extra else ()
        history_of_extras = extras[: k + 1] if with_extra else None
        expected = reference.mtadam(gradients[: k + 1], SIZES, (0.8, 0.95, 0.7), 1e-2, history_of_extras)
        assert torch.allclose(aggregator(gradients[k], losses[k], *args)[0], expected, rtol=1e-9, atol=1e-12)


def test_mtadam_does_not_see_the_scale_of_a_loss_even_while_the_anchor_is_missing():
    gradients, losses = history()
    factors = torch.tensor([1e6, 1.0, 1e-6], dtype=torch.float64)
    plain = run(build(MTAdam), gradients, losses)
    scaled = run(build(MTAdam), gradients * factors[:, None], losses)
    for a, b in zip(plain, scaled, strict=True):
        assert torch.allclose(a, b, rtol=1e-9)


# ---- GradDrop ----


def test_graddrop_keeps_a_sign_as_often_as_its_share():
    column = torch.tensor([[3.0], [-1.0], [0.0]], dtype=torch.float64)
    combined = GradDrop()(column.repeat(1, 40000), torch.ones(3))[0]
    assert set(combined.tolist()) == {3.0, -1.0}
    share = (combined > 0).double().mean().item()
    assert abs(share - 0.75) < 5 * (0.75 * 0.25 / 40000) ** 0.5
    leaky = GradDrop(leak=0.5)(column.repeat(1, 100), torch.ones(3))[0]
    assert set(leaky.tolist()) == {2.5, 0.5}


def test_graddrop_never_drops_what_agrees_and_leaks_everything_at_one():
    gradients, losses = history(missing=False)
    for signed in (gradients[0].abs(), -gradients[0].abs()):
        assert torch.equal(GradDrop()(signed, losses[0])[0], signed.sum(0))
    assert torch.allclose(GradDrop(leak=1.0)(gradients[0], losses[0])[0], gradients[0].sum(0))


def representation_case(batch=4):
    generator = torch.Generator().manual_seed(3)
    gradients = torch.randn(3, batch, 5, 2, generator=generator, dtype=torch.float64)
    representation = torch.randn(batch, 5, 2, generator=generator, dtype=torch.float64)
    representation[:, 0] = 0  # features that are off, in all samples or in one
    representation[1, 1:4] = 0
    gradients[1, :, 1:4] = torch.where(representation[:, 1:4] == 0, gradients[1, :, 1:4], 0)
    gradients[2, :, 2] = 0
    return gradients, representation


@pytest.mark.parametrize('leak', [0.0, 0.25])
def test_graddrop_at_representation_is_its_algorithm(leak):
    gradients, representation = representation_case()
    uniform = torch.rand(5, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    expected = reference.graddrop_at_representation(gradients, representation, uniform, leak)
    combined = GradDrop(leak, seed=7).at_representation(gradients, representation, lambda value: value)
    assert torch.allclose(combined, expected, rtol=1e-12)
    assert (expected != gradients.sum(0)).any()
    assert torch.allclose(combined[:, 0], gradients[:, :, 0].sum(0))  # without a sign of Z nothing is dropped


def test_graddrop_at_representation_is_the_same_on_parts_of_the_batch():
    gradients, representation = representation_case(6)
    whole = GradDrop(seed=1).at_representation(gradients, representation, lambda value: value)
    parts = list(zip(gradients.split([2, 4], 1), representation.split([2, 4]), strict=True))
    local = []
    for g, z in parts:
        GradDrop(seed=1).at_representation(g, z, lambda value: local.append(value.clone()) or value)
    combined = [GradDrop(seed=1).at_representation(g, z, lambda value: sum(local)) for g, z in parts]
    assert torch.allclose(torch.cat(combined), whole, rtol=1e-12)


def test_graddrop_resumes_its_draws():
    gradients, losses = history()
    first, second = GradDrop(seed=1), GradDrop(seed=2)
    second.load_state_dict(saved(first))  # before any draw: the state is the seed alone
    assert torch.equal(second(gradients[1], losses[1])[0], GradDrop(seed=2)(gradients[1], losses[1])[0])
    run(first, gradients[:3], losses[:3])
    second.load_state_dict(saved(first))
    assert torch.equal(saved(second)['_extra_state'], saved(first)['_extra_state'])
    for k in range(3, 8):
        assert torch.equal(first(gradients[k], losses[k])[0], second(gradients[k], losses[k])[0])
    second.set_extra_state(torch.zeros(16, dtype=torch.uint8))
    with pytest.raises(ValueError, match="not of a 'cpu' device"):
        second(gradients[0], losses[0])
