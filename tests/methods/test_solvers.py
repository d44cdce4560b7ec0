"""The small problems behind the gradient aggregators, against slow solutions on the gradients themselves."""

import pytest
import torch

from mmrepmtl.methods.aggregation import solvers
from tests.methods import gramian_reference as reference
from tests.methods.gramian_reference import JACOBIANS, REGULAR, normal, relative_error

SCALES = [1e-14, 1.0, 1e14]


def split(gradients):
    return solvers.cosines_and_norms(gradients @ gradients.T)


def bundles(seed, size=None, noise=None):
    """Gradients that are parallel or opposed to one of a few up to some noise."""
    draw = torch.Generator().manual_seed(seed)

    def number(low, high):
        return int(torch.randint(low, high, (1,), generator=draw))

    num_tasks, size, exponent = number(3, 14), size or number(1, 16), number(1, 7)
    base = torch.randn(number(1, 4), size, generator=draw, dtype=torch.float64)
    signs = torch.randint(0, 2, (num_tasks, 1), generator=draw) * 2 - 1
    gradients = base[torch.randint(0, len(base), (num_tasks,), generator=draw)] * signs
    return gradients + (noise or 10.0**-exponent) * torch.randn(gradients.shape, generator=draw, dtype=torch.float64)


def test_absent_tasks_are_no_part_of_a_problem():
    gradients = normal(4, 5) * torch.tensor([[1.0], [0], [1], [0]])
    asked = []

    def solve(gramian, losses):
        asked.append((gramian, losses))
        return torch.tensor([3.0, 4.0], dtype=torch.float64)

    weights = solvers.on_present_tasks(solve, gradients @ gradients.T, torch.tensor([1.0, 2, 3, 4]))
    assert weights.tolist() == [3, 0, 4, 0]
    (gramian, losses), *rest = asked
    present = gradients[[0, 2]]
    assert torch.allclose(gramian, present @ present.T) and losses.tolist() == [1, 3] and not rest


@pytest.mark.parametrize('present, expected', [([0, 1, 0], [0, 1, 0]), ([0, 0, 0], [0, 0, 0])])
def test_one_task_or_none_needs_no_solution(present, expected):
    gradients = normal(3, 5) * torch.tensor(present)[:, None]
    assert solvers.on_present_tasks(None, gradients @ gradients.T, torch.ones(3)).tolist() == expected


def test_the_only_one_of_several_is_a_problem_where_its_weight_has_a_unit():
    def solve(gramian, losses):
        return 1 / gramian.diagonal()

    gradients = 3 * torch.eye(3, dtype=torch.float64)
    gradients[[0, 2]] = 0
    found = solvers.on_present_tasks(solve, gradients @ gradients.T, torch.ones(3), solve_last=True)
    assert torch.allclose(found, torch.tensor([0, 1 / 9, 0], dtype=torch.float64))
    gramian = torch.full((1, 1), 9.0, dtype=torch.float64)
    assert solvers.on_present_tasks(solve, gramian, torch.ones(1), solve_last=True).tolist() == [1]  # plain training


def test_a_gramian_that_is_not_finite_is_refused():
    for bad in (float('nan'), float('inf')):
        gramian = torch.eye(3, dtype=torch.float64)
        gramian[2, 2] = bad
        with pytest.raises(ValueError, match='not finite'):
            solvers.present_tasks(gramian)


@pytest.mark.parametrize('scale', SCALES)
def test_cosines_and_norms_at_any_scale(scale):
    gradients = normal(3, 5) * torch.tensor([[1.0], [1e-4], [1e4]]) * scale
    cosines, norms = split(gradients)
    units = gradients / gradients.norm(dim=1, keepdim=True)
    assert torch.allclose(cosines, units @ units.T, atol=1e-14) and (cosines.diagonal() == 1).all()
    assert torch.allclose(norms, gradients.norm(dim=1), rtol=1e-14, atol=0) and torch.equal(cosines, cosines.T)


def test_clipping_scales_the_combination_down_only():
    gradients, weights = normal(3, 5), torch.tensor([1.0, 2, -1], dtype=torch.float64)
    norm = (weights @ gradients).norm()
    clipped = solvers.clip_to_norm(weights, gradients @ gradients.T, 0.5 * float(norm))
    assert torch.allclose(clipped, 0.5 * weights)
    for limit in (2 * float(norm), None):
        assert torch.equal(solvers.clip_to_norm(weights, gradients @ gradients.T, limit), weights)


@pytest.mark.parametrize('name', JACOBIANS)
def test_nonnegative_qp_satisfies_its_optimality_conditions(name):
    """For q = C v, which always has a solution; here one that is degenerate where C is singular."""
    cosines, _ = split(JACOBIANS[name])
    for seed in range(20):
        linear = cosines @ normal(len(cosines), seed=seed)
        x = solvers.nonnegative_qp(cosines, linear)
        slope = cosines @ x - linear
        assert (x >= 0).all() and (slope > -1e-10).all() and abs(float(x @ slope)) < 1e-10


def test_nonnegative_qp_tells_when_there_is_no_solution():
    cosines, _ = split(torch.tensor([[1.0, 0], [-1, 0], [0, 1]], dtype=torch.float64))
    assert solvers.nonnegative_qp(cosines, torch.ones(3, dtype=torch.float64)) is None
    assert solvers.nonnegative_qp(cosines, torch.tensor([1.0, -1, 1], dtype=torch.float64)) is not None


def test_forty_tasks_are_as_exact():
    """No enumeration: optimality for many more tasks than parameters and the other way round."""
    for size in (10, 100):
        gradients = normal(40, size) + 1.0
        weights, stationary = solvers.min_norm_weights(gradients @ gradients.T)
        shortest = weights @ gradients
        assert not stationary and weights.min() >= 0
        assert (gradients @ shortest >= shortest @ shortest - 1e-12).all()


@pytest.mark.parametrize('scale', SCALES)
@pytest.mark.parametrize('name', JACOBIANS)
def test_min_norm_is_that_of_every_face_of_the_hull(name, scale):
    gradients = JACOBIANS[name] * scale
    weights, stationary = solvers.min_norm_weights(gradients @ gradients.T)
    assert weights.min() >= 0 and float(weights.sum()) == pytest.approx(1)
    assert stationary == (name not in REGULAR)
    smallest = gradients.norm(dim=1).min()
    if stationary:
        assert (weights @ gradients).norm() < 1e-12 * smallest
    else:
        assert relative_error(weights @ gradients, reference.shortest_in_hull(gradients)) < 1e-9


@pytest.mark.parametrize('name', JACOBIANS)
def test_projection_on_the_dual_cone_is_that_of_every_face(name):
    gradients = JACOBIANS[name]
    cosines, norms = split(gradients)
    units = gradients / norms[:, None]
    for seed in range(5):
        coefficients = normal(len(gradients), seed=seed)
        projected = solvers.project_on_dual_cone(cosines, coefficients)
        want = reference.project_on_polyhedron(coefficients @ units, units, torch.zeros(len(units)).double())
        assert (projected >= coefficients).all()
        assert relative_error(projected @ units, want, (coefficients @ units).norm()) < 1e-9


def test_a_cone_as_narrow_as_rounding_is_left_by_nothing():
    """Gradients that are parallel or opposed up to 1e-9: the Gramian cannot tell, and the result must not conflict."""
    for seed in range(100):
        cosines, _ = split(bundles(seed, noise=1e-9))
        for task in torch.eye(len(cosines), dtype=torch.float64):
            projected = solvers.project_on_dual_cone(cosines, task)
            assert (cosines @ projected > -1e-6 * projected.abs().sum()).all()


@pytest.mark.parametrize('name', JACOBIANS)
def test_pseudo_solve_is_the_least_squares_direction(name):
    gradients = JACOBIANS[name]
    cosines, norms = split(gradients)
    units, ones = gradients / norms[:, None], torch.ones(len(norms), dtype=torch.float64)
    direction = solvers.pseudo_solve(cosines, ones) @ units
    assert relative_error(direction, torch.linalg.pinv(units, rtol=1e-10) @ ones) < 1e-9


@pytest.mark.parametrize('alpha', [0.5, 1.0, 2.0, 5.0, 20.0])
@pytest.mark.parametrize('name', JACOBIANS)
def test_fair_coefficients_solve_their_equation(name, alpha):
    cosines, norms = split(JACOBIANS[name])
    factors = (norms / norms.max()) ** (1 / alpha - 1)
    b = solvers.fair_coefficients(cosines, factors, alpha)
    assert (b is None) == (name not in REGULAR)
    if b is not None:
        assert b.min() > 0
        assert torch.allclose(cosines @ b, factors * b ** (-1 / alpha), rtol=1e-9, atol=0)


def test_fair_coefficients_need_many_steps_near_the_limit_and_get_there():
    angle = torch.tensor(3.14159265 - 1e-4, dtype=torch.float64)
    gradients = torch.tensor([[1.0, 0], [angle.cos(), angle.sin()]], dtype=torch.float64)
    cosines, _ = split(gradients)
    b = solvers.fair_coefficients(cosines, torch.ones(2, dtype=torch.float64), 1.0)
    assert torch.allclose(b, (1 + cosines[0, 1]).rsqrt().expand(2), rtol=1e-6)


def test_gradients_that_cancel_are_told_from_those_that_do_not():
    """However ill-conditioned: there is a bargain, or a combination of the unit gradients that is as good as zero."""
    found = []
    for seed in range(150):
        gradients = bundles(seed, size=2)
        cosines, norms = split(gradients)
        weights, stationary = solvers.min_norm_weights(cosines)
        shortest = float((weights @ (gradients / norms[:, None])).norm())
        assert stationary == (shortest < 1e-6)
        b = solvers.fair_coefficients(cosines, torch.ones_like(norms), 1.0)
        assert (b is None) == stationary
        found.append(stationary)
    assert 0 < sum(found) < len(found)


def test_projection_on_the_simplex():
    for seed in range(20):
        point = 2 * normal(6, seed=seed)
        projected = solvers.project_on_simplex(point)
        assert projected.min() >= 0 and float(projected.sum()) == pytest.approx(1)
        shift = (point - projected)[projected > 0]
        assert torch.allclose(shift, shift[0].expand_as(shift))
        assert (point[projected == 0] <= shift[0] + 1e-12).all()
    inside = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    assert torch.allclose(solvers.project_on_simplex(inside), inside)
