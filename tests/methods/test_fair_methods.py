"""Nash-MTL and FairGrad: their equations, what is clipped, and bargains that not every task is in."""

import pytest
import torch

from mmrepmtl.methods.aggregation import MGDA, FairGrad, NashMTL
from tests.methods.gramian_reference import CASES, JACOBIANS, REGULAR, combine, normal, rows, unit


@pytest.mark.parametrize('name, scale', CASES)
def test_nash_mtl_solves_the_bargain(name, scale):
    gradients = JACOBIANS[name] * scale
    combined, weights = combine(NashMTL(max_norm=None), gradients)
    if name not in REGULAR:
        assert (weights == 0).all() and (combined == 0).all()
        return
    assert weights.min() > 0
    assert torch.allclose(gradients @ gradients.T @ weights, 1 / weights, rtol=1e-8, atol=0)
    assert float(combined.norm()) == pytest.approx(len(gradients) ** 0.5, rel=1e-8)


def test_nash_mtl_of_two_tasks_gives_both_unit_gradients_the_same_weight():
    gradients = rows([1, 0], [3, 4])
    weights = combine(NashMTL(max_norm=None), gradients)[1]
    assert torch.allclose(weights, rows(1, 0.2) / (1 + 0.6) ** 0.5)


def test_nash_mtl_clips_the_step_and_not_the_heads():
    gradients = normal(3, 5)
    free, unclipped = combine(NashMTL(max_norm=None), gradients)
    method = NashMTL()
    combined, weights = combine(method, gradients)
    assert float(combined.norm()) == pytest.approx(1) and torch.allclose(unit(combined), unit(free))
    assert torch.allclose(weights @ gradients, combined)
    assert method.weight_heads and torch.allclose(method.head_weights(weights, None), unclipped)
    assert NashMTL(weight_heads=False).head_weights(weights, None) is None
    assert torch.allclose(combine(NashMTL(), 1e-6 * gradients)[0], combined)
    assert torch.allclose(combine(NashMTL(max_norm=2.0), gradients)[0], free)  # of norm sqrt(3)


def test_nash_mtl_bargains_every_so_many_steps():
    method, losses = NashMTL(update_weights_every=3, max_norm=None), torch.ones(3)
    method.setup(3)
    found = [method(normal(3, 5, seed=seed), losses)[1] for seed in range(7)]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2]) and torch.equal(found[3], found[5])
    assert not torch.allclose(found[2], found[3]) and not torch.allclose(found[5], found[6])
    fresh = [combine(NashMTL(max_norm=None), normal(3, 5, seed=seed))[1] for seed in (0, 3, 6)]
    assert all(torch.allclose(found[i], w) for i, w in zip((0, 3, 6), fresh, strict=True))


def test_nash_mtl_keeps_the_weight_of_an_absent_task():
    method, losses = NashMTL(update_weights_every=2, max_norm=None), torch.ones(3)
    method.setup(3)
    before = method(normal(3, 5), losses)[1]
    absent = normal(3, 5, seed=1) * rows([1], [0], [1])
    assert torch.allclose(method(absent, losses)[1], before * rows(1, 0, 1))
    bargained = method(absent, losses)[1]
    assert torch.allclose(bargained[[0, 2]], combine(NashMTL(max_norm=None), absent[[0, 2]])[1])
    after = method(normal(3, 5, seed=2), losses)[1]
    assert torch.allclose(after, torch.where(rows(0, 1, 0) > 0, before, bargained))


@pytest.mark.parametrize('settings', [dict(), dict(max_norm=0.3), dict(max_norm=None)])
@pytest.mark.parametrize('scale', [1e-6, 1.0, 1e6])
def test_nash_mtl_of_the_only_labelled_task_is_its_equation(scale, settings):
    gradients = scale * normal(3, 5) * rows([0], [1], [0])
    method, norm = NashMTL(**settings), gradients[1].norm()
    combined, weights = combine(method, gradients)
    assert torch.allclose(combined, gradients[1] / norm * min(settings.get('max_norm') or 1.0, 1.0))
    assert torch.allclose(method.head_weights(weights, None) * norm, rows(0.0, 1.0, 0.0))


def test_nash_mtl_uses_the_bargain_of_the_only_labelled_task():
    method, losses = NashMTL(update_weights_every=2, max_norm=None), torch.ones(3)
    alone = normal(3, 5) * rows([0], [1], [0])
    found = [combine(method, factor * alone, losses)[1] for factor in (1.0, 2.0, 2.0)]
    assert torch.equal(found[0], found[1]) and torch.allclose(found[2], found[0] / 2)


@pytest.mark.parametrize('scale', [1e-6, 1.0, 1e6])
@pytest.mark.parametrize('kind', [NashMTL, FairGrad])
def test_one_task_in_all_is_plain_training_at_any_norm(kind, scale):
    method, gradients = kind(weight_heads=True), scale * normal(1, 5)
    combined, weights = combine(method, gradients)
    assert torch.equal(combined, gradients[0]) and weights.tolist() == [1]
    assert method.head_weights(weights, None).tolist() == [1]


@pytest.mark.parametrize('scale', [1e-6, 1e6])
def test_nash_mtl_bargains_at_once_with_a_task_that_comes_later(scale):
    steps = [normal(3, 5, seed=seed) for seed in range(4)]
    steps[0][2] = 0
    steps[1][:2] = 0
    plain, scaled = NashMTL(update_weights_every=3), NashMTL(update_weights_every=3)
    losses, heads = torch.ones(3), []
    for gradients in steps:
        found = [combine(method, s * gradients, losses) for method, s in ((plain, 1.0), (scaled, scale))]
        heads.append(plain.head_weights(found[0][1], None))
        assert torch.allclose(found[1][0], found[0][0], rtol=1e-9)
        assert torch.allclose(scaled.head_weights(found[1][1], None) * scale, heads[-1], rtol=1e-9)
    assert torch.allclose(heads[1] * steps[1][2].norm(), rows(0.0, 0.0, 1.0))  # a bargain of its own
    assert torch.equal(heads[2], heads[0] + heads[1])  # all have one: none is made before its time
    assert torch.allclose(heads[3], combine(NashMTL(max_norm=None), steps[3])[1])


def test_nash_mtl_of_a_newcomer_is_a_bargain_of_all():
    method, gradients = NashMTL(update_weights_every=3, max_norm=None), normal(3, 5)
    method.setup(3)
    method(gradients * rows([1], [1], [0]), torch.ones(3))
    assert method.bargain_T[2] == 0
    assert torch.allclose(combine(method, gradients)[1], combine(NashMTL(max_norm=None), gradients)[1])


@pytest.mark.parametrize('scale', [1e-6, 1.0, 1e6])
def test_nash_mtl_without_any_bargain_weighs_heads_by_their_gradients(scale):
    method, opposed = NashMTL(update_weights_every=2), rows([1, 0, 0], [-3, 0, 0])
    for _ in range(2):  # in the second step no bargain is due, but neither has one
        combined, weights = combine(method, scale * opposed)
        assert (combined == 0).all() and (weights == 0).all()
        assert torch.allclose(method.head_weights(weights, None) * scale, rows(1, 1 / 3))
    assert method.bargain_T.tolist() == [0, 0]


def test_nash_mtl_without_a_solution_keeps_training_the_heads():
    method = NashMTL()
    first = combine(method, normal(2, 3))[1]
    unclipped = method.head_weights(first, None)
    combined, weights = combine(method, rows([1, 0, 0], [-3, 0, 0]))
    assert (combined == 0).all() and (weights == 0).all()
    assert torch.equal(method.head_weights(weights, None), unclipped)
    with pytest.raises(ValueError, match='update_weights_every'):
        NashMTL(update_weights_every=0)
    with pytest.raises(ValueError, match='max_norm'):
        NashMTL(max_norm=0.0)


@pytest.mark.parametrize('alpha', [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize('name, scale', CASES)
def test_fairgrad_solves_its_fixed_point(name, alpha, scale):
    gradients = JACOBIANS[name] * scale
    combined, weights = combine(FairGrad(alpha=alpha, max_norm=None), gradients)
    if name not in REGULAR:
        assert (weights == 0).all() and (combined == 0).all()
        return
    assert weights.min() > 0
    assert torch.allclose(gradients @ gradients.T @ weights, weights ** (-1 / alpha), rtol=1e-8, atol=0)


def test_fairgrad_between_proportional_fairness_and_mgda():
    gradients = JACOBIANS['conflicting']
    nash = combine(NashMTL(max_norm=None), gradients)[0]
    assert torch.allclose(unit(combine(FairGrad(alpha=1.0), gradients)[0]), unit(nash))
    shortest = unit(combine(MGDA(), gradients)[0])
    cosines = [float(unit(combine(FairGrad(alpha=alpha), gradients)[0]) @ shortest) for alpha in (1.0, 5.0, 20.0)]
    assert cosines[0] < cosines[1] < cosines[2] and cosines[2] > 0.99


def test_fairgrad_scale_and_clipping():
    gradients = normal(3, 5)
    free = combine(FairGrad(alpha=2.0, max_norm=None), gradients)[0]
    for scale in (1e-6, 1e6):
        scaled = combine(FairGrad(alpha=2.0, max_norm=None), gradients * scale)[0]
        assert torch.allclose(scaled, free * scale ** (-1 / 3), rtol=1e-9)
    clipped = combine(FairGrad(alpha=2.0), gradients * 1e-6)[0]
    assert float(clipped.norm()) == pytest.approx(1) and torch.allclose(unit(clipped), unit(free))
    for bad in (dict(alpha=0.1), dict(alpha=100.0), dict(max_norm=-1.0)):
        with pytest.raises(ValueError, match='FairGrad'):
            FairGrad(**bad)


@pytest.mark.parametrize('alpha', [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize('scale', [1e-6, 1.0, 1e6])
def test_fairgrad_of_the_only_labelled_task_is_its_equation(scale, alpha):
    gradients = scale * normal(3, 5) * rows([0], [1], [0])
    norm = gradients[1].norm()
    free, weights = combine(FairGrad(alpha=alpha, max_norm=None), gradients)
    assert torch.allclose(weights[1], norm ** (-2 * alpha / (1 + alpha)), rtol=1e-12)
    assert weights.count_nonzero() == 1 and torch.allclose(norm**2 * weights[1], weights[1] ** (-1 / alpha))
    clipped = combine(FairGrad(alpha=alpha), gradients)[0]
    assert torch.allclose(clipped, free / max(1.0, float(free.norm())))
