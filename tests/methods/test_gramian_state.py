"""GradVac, GradNorm and SDMGrad: the methods in the Gramian that learn, against slow versions over several steps."""

import copy

import pytest
import torch
import torchjd.aggregation

from mmrepmtl.methods.aggregation import MGDA, GradNorm, GradVac, PCGrad, SDMGrad
from tests.methods import gramian_reference as reference
from tests.methods.gramian_reference import normal, relative_error


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def ready(method, num_tasks=3):
    method.setup(num_tasks)
    return method


# ---- GradVac ----


def test_gradvac_equals_the_algorithm_on_full_gradients():
    method, targets, generator = ready(GradVac(beta=0.3, seed=5), 4), torch.zeros(4, 4), torch.Generator()
    targets, generator = targets.double(), generator.manual_seed(5)
    drift = normal(1, 6)
    for step in range(10):
        gradients = normal(4, 6, seed=step) + drift * rows([1.0], [1], [-0.5], [1])
        want = reference.vaccinate(gradients, targets, 0.3, generator)
        assert relative_error(method(gradients, torch.ones(4))[0], want) < 1e-10
        assert torch.allclose(method.targets_TT, targets)
    assert targets.max() > 0.2  # some pairs are held above a right angle


def test_gradvac_with_targets_of_zero_is_pcgrad():
    for seed in range(5):
        vaccine, surgery = ready(GradVac(beta=0.0, seed=seed), 4), PCGrad(seed=seed)
        for step in range(3):
            gradients = normal(4, 3, seed=step)
            assert torch.allclose(vaccine(gradients, torch.ones(4))[1], surgery(gradients, torch.ones(4))[1])


def test_gradvac_reaches_its_target():
    method = ready(GradVac(), 2)
    method.targets_TT.fill_(0.6)
    gradients = rows([1, 0], [0, 1])
    combined = method(gradients, torch.ones(2))[0]
    # g_1' = g_1 + 3/4 g_2 has the cosine 0.6 with g_2, and so has the other.
    assert torch.allclose(combined, rows(1.75, 1.75))
    method.targets_TT.fill_(1.0)  # not reachable: as far as it goes, and finite
    assert torch.isfinite(method(gradients, torch.ones(2))[0]).all()


def test_gradvac_agrees_with_torchjd_on_two_tasks():
    method, theirs = ready(GradVac(beta=0.5), 2), torchjd.aggregation.GradVac(beta=0.5, eps=0.0)
    for step in range(6):
        gradients = normal(2, 3, seed=step) + 0.7
        assert torch.allclose(method(gradients, torch.ones(2))[0], theirs(gradients))


def test_gradvac_leaves_absent_tasks_alone():
    method = ready(GradVac(beta=0.5))
    method(normal(3, 5) + 1, torch.ones(3))
    before = method.targets_TT.clone()
    gradients = (normal(3, 5, seed=1) + 1) * rows([1], [0], [1])
    weights = method(gradients, torch.ones(3))[1]
    changed = method.targets_TT != before
    assert changed[[0, 2], [2, 0]].all() and int(changed.sum()) == 2 and weights[1] == 0


def test_gradvac_of_opposed_gradients_is_zero_and_learns_on():
    method = ready(GradVac(beta=0.5))
    for _ in range(3):
        combined, weights = method(rows([1, 0, 0], [-2, 0, 0], [0, 0, 0]), torch.ones(3))
        assert combined.norm() < 1e-12
    assert method.targets_TT[0, 1] == pytest.approx(-0.875)
    for _ in range(20):
        weights = method(rows([1, 0, 0], [-2, 0, 0], [0, 3, 1]), torch.ones(3))[1]
        assert torch.isfinite(weights).all() and torch.isfinite(method.targets_TT).all()
    with pytest.raises(ValueError, match='beta'):
        GradVac(beta=1.5)


# ---- GradNorm ----


@pytest.mark.parametrize('scale', [1e-14, 1.0, 1e6])
def test_gradnorm_descends_its_loss(scale):
    method = ready(GradNorm(alpha=1.2, lr=0.1))
    weights, history = torch.ones(3, dtype=torch.float64), [1 + normal(3, seed=step).abs() for step in range(5)]
    for step, losses in enumerate(history):
        gradients = normal(3, 5, seed=step) * scale
        combined, applied = method(gradients, losses)
        assert torch.allclose(applied, weights) and relative_error(combined, weights @ gradients) < 1e-12
        weights = reference.grad_norm_step(weights, gradients.norm(dim=1), losses / history[0], 1.2, 0.1)
        assert float(weights.sum()) == pytest.approx(3)
    assert torch.allclose(method.weights_T, weights)


def test_gradnorm_makes_the_norms_equal_when_all_tasks_train_alike():
    method, gradients = ready(GradNorm(lr=0.01)), normal(3, 5) * rows([1.0], [1e-4], [50])
    assert torch.allclose(method(gradients, torch.ones(3))[0], gradients.sum(0))
    for _ in range(1500):
        weights = method(gradients, torch.ones(3))[1]
    sizes = weights * gradients.norm(dim=1)
    assert (sizes / sizes.mean() - 1).abs().max() < 0.05


def test_gradnorm_gives_the_slower_task_the_larger_gradient():
    method, gradients = ready(GradNorm(alpha=1.0, lr=0.01), 2), normal(2, 5)
    method(gradients, rows(2, 2))
    for _ in range(500):
        weights = method(gradients, rows(2, 1))[1]
    sizes = weights * gradients.norm(dim=1)
    assert torch.allclose(sizes[0] / sizes[1], rows(2.0)[0], rtol=0.05)


def test_gradnorm_and_absent_tasks():
    method = ready(GradNorm(lr=0.1))
    method(normal(3, 5), rows(1, 1, 1))
    method(normal(3, 5, seed=1), rows(1, 1, 1))
    before, total = method.weights_T.clone(), method.weights_T[[0, 2]].sum()
    weights = method(normal(3, 5, seed=2) * rows([1], [0], [1]), rows(0.5, 0, 1))[1]
    assert torch.allclose(weights[[0, 2]], 2 * before[[0, 2]] / total) and weights[1] == 0
    assert method.weights_T[1] == before[1] and (method.weights_T[[0, 2]] != before[[0, 2]]).all()
    assert torch.allclose(method.weights_T.sum(), before.sum())
    assert method(normal(3, 5) * rows([0], [1], [0]), rows(0, 1, 0))[1].tolist() == [0, 1, 0]


def test_gradnorm_measures_progress_from_where_a_task_is_first_seen():
    method = ready(GradNorm())
    method(normal(3, 5) * rows([1], [0], [1]), rows(4, 0, 8))
    assert method.initial_T.tolist() == [4, 0, 8]
    method(normal(3, 5), rows(2, 3, 1))
    assert method.initial_T.tolist() == [4, 3, 8]


def test_gradnorm_are_loss_weights_of_positive_losses():
    method = GradNorm()
    assert method.weight_heads and method.loss_transform == 'own'
    before = copy.deepcopy(ready(method).state_dict())
    with pytest.raises(ValueError, match='positive losses'):
        method(normal(3, 5), rows(1, -1, 1))
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    with pytest.raises(ValueError, match='lr'):
        GradNorm(lr=-1.0)


# ---- SDMGrad ----


def batches(seed, noise=0.5):
    mean = normal(3, 6, seed=100)
    return mean + noise * normal(3, 3, 6, seed=seed)


@pytest.mark.parametrize('lr', [0.05, 10.0])  # below the bound of the steps and above it
@pytest.mark.parametrize('factors', [(1.0, 2.0, 0.1), (1.0, 1e4, 10.0)])
@pytest.mark.parametrize('scale', [1e-14, 1.0, 1e6])
def test_sdmgrad_equals_the_algorithm_on_full_gradients(scale, factors, lr):
    settings = dict(lambda_=0.3, n_iter=15, lr=lr, momentum=0.5)
    method, weights = ready(SDMGrad(**settings)), torch.full((3,), 1 / 3, dtype=torch.float64)
    for step in range(5):
        gradients = batches(step) * rows(*factors)[:, None] * scale
        combined, applied = method(gradients, torch.ones(3))
        want, weights = reference.direction_oriented(gradients, weights, **settings)
        assert relative_error(combined, want) < 1e-9
        assert torch.allclose(method.simplex_T, weights) and torch.allclose(applied @ gradients[2], combined)
        assert float(applied.sum()) == pytest.approx(3)


@pytest.mark.parametrize('num_tasks', [5, 10])
def test_sdmgrad_does_not_follow_rounding(num_tasks):
    """Uncorrelated gradients, default settings."""
    for trial in range(3):
        mean = 0.3 * normal(num_tasks, 300, seed=trial)
        one, other = ready(SDMGrad(), num_tasks), ready(SDMGrad(), num_tasks)
        for step in range(30):
            rows_3TP = mean + 0.5 * normal(3, num_tasks, 300, seed=100 * trial + step)
            noise = 1 + 1e-15 * normal(3, num_tasks, 300, seed=7000 + step)
            assert relative_error(other(rows_3TP * noise, None)[0], one(rows_3TP, None)[0]) < 1e-6


def test_sdmgrad_of_two_halves_is_that_of_the_whole_in_float32():
    one, two, mean = ready(SDMGrad(), 5), ready(SDMGrad(), 5), 0.2 * normal(1, 5, 1, 1000)
    for step in range(20):
        samples = (mean + 0.3 * normal(3, 5, 8, 1000, seed=step)).float()
        halves = (samples[:, :, :4].mean(2) + samples[:, :, 4:].mean(2)) / 2
        assert relative_error(two(halves, None)[0], one(samples.mean(2), None)[0]) < 1e-5


@pytest.mark.parametrize('correlation', [0.0, 1.0])
@pytest.mark.parametrize('num_tasks', [2, 3, 5, 10])
def test_sdmgrad_minimises_its_objective_at_default_settings(num_tasks, correlation):
    """The least of ``w g + 0.3 g_0`` over the simplex is that of the convex hull of ``g_t + 0.3 g_0``."""
    for seed in range(3):
        gradients = normal(num_tasks, 300, seed=seed) + correlation * normal(1, 300, seed=50 + seed)
        shifted = gradients + 0.3 * gradients.mean(0)
        least = MGDA()(shifted, torch.ones(num_tasks))[0].square().sum()
        method = ready(SDMGrad(), num_tasks)
        for _ in range(10):
            method(gradients, None)
        reached = (method.simplex_T @ shifted).square().sum()
        assert least * (1 - 1e-9) <= reached <= min(1.01 * least, shifted.mean(0).square().sum())


def test_sdmgrad_with_one_batch_uses_it_for_all_roles():
    gradients = normal(3, 6)
    once, thrice = ready(SDMGrad())(gradients, None), ready(SDMGrad())(gradients.expand(3, 3, 6), None)
    assert torch.allclose(once[0], thrice[0]) and torch.allclose(once[1], thrice[1])
    with pytest.raises(ValueError, match='three batches'):
        ready(SDMGrad())(gradients.expand(2, 3, 6), None)


def test_sdmgrad_between_mgda_and_the_mean():
    gradients = normal(3, 6)
    alone = ready(SDMGrad(lambda_=0.0, n_iter=3000, lr=0.1))(gradients, None)[0]
    assert relative_error(alone, 3 * MGDA()(gradients, torch.ones(3))[0]) < 1e-6
    mean = ready(SDMGrad(lambda_=1e6))(gradients, None)[0]
    assert relative_error(mean, gradients.sum(0)) < 1e-5
    # Converged, it is the shortest (w + lambda / T) g, w on the simplex: no other vertex is nearer to descent.
    method = ready(SDMGrad(lambda_=0.3, n_iter=3000, lr=0.1))
    method(gradients, None)
    target = method.simplex_T @ gradients + 0.3 * gradients.mean(0)
    assert (gradients @ target >= method.simplex_T @ (gradients @ target) - 1e-8).all()


def test_sdmgrad_and_absent_tasks():
    method = ready(SDMGrad(lr=0.2))
    method(batches(0), None)
    before = method.simplex_T.clone()
    absent = batches(1) * rows([1], [0], [1])
    weights = method(absent, None)[1]
    assert method.simplex_T[1] == before[1] and (method.simplex_T[[0, 2]] != before[[0, 2]]).all()
    assert float(method.simplex_T.sum()) == pytest.approx(1)
    assert weights[1] == 0 and float(weights.sum()) == pytest.approx(2)
    # A task that only the step's batch lacks has its weight updated and is left out of the step.
    last_only = batches(2)
    last_only[2, 0] = 0
    before = method.simplex_T.clone()
    combined, weights = method(last_only, None)
    assert method.simplex_T[0] != before[0] and weights[0] == 0
    assert torch.allclose(combined, weights[1:] @ last_only[2, 1:]) and float(weights.sum()) == pytest.approx(2)
    assert method(torch.zeros(3, 3, 6).double(), None)[0].abs().max() == 0


def test_sdmgrad_settings():
    assert SDMGrad.num_batches == 3 and not SDMGrad().weight_heads
    for bad in (dict(lambda_=-1.0), dict(momentum=1.0), dict(lr=-1.0), dict(level='representation')):
        with pytest.raises(ValueError, match='SDMGrad'):
            SDMGrad(**bad)
