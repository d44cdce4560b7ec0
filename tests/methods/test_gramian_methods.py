"""Each method's defining property, its closed forms, and an independent slow version."""

import math

import pytest
import torch
import torchjd.aggregation

from mmrepmtl.methods.aggregation import (
    IMTLG,
    MGDA,
    AlignedMTL,
    CAGrad,
    ConFIG,
    DualProj,
    PCGrad,
    UPGrad,
)
from tests.methods import gramian_reference as reference
from tests.methods.gramian_reference import CASES, JACOBIANS, REGULAR, combine, normal, relative_error, rows, unit

SYMMETRIC = torch.tensor([[3.0, 1.0], [-3.0, 1.0]], dtype=torch.float64)
INDEPENDENT = [n for n in REGULAR if n not in ('duplicated', 'parallel', 'more-tasks-than-parameters')]

# ---- MGDA ----


@pytest.mark.parametrize('name, scale', CASES)
def test_mgda_is_the_shortest_convex_combination(name, scale):
    gradients = JACOBIANS[name] * scale
    combined, weights = combine(MGDA(), gradients)
    assert weights.min() >= 0 and float(weights.sum()) == pytest.approx(1)
    shortest = reference.shortest_in_hull(gradients)
    assert relative_error(combined, shortest, 1e-6 * gradients.norm(dim=1).min()) < 1e-6
    if name in REGULAR:
        assert relative_error(combined, shortest) < 1e-9


def test_mgda_of_two_tasks_is_its_closed_form():
    for seed in range(20):
        first, second = normal(2, 3, seed=seed) * rows([1.0], [10.0 ** (seed % 5 - 2)])
        share = ((second - first) @ second / (second - first).square().sum()).clamp(0, 1)
        assert torch.allclose(combine(MGDA(), torch.stack([first, second]))[1], torch.stack([share, 1 - share]))


def test_mgda_on_special_pairs():
    assert torch.allclose(combine(MGDA(), rows([1, 0], [0, 2]))[1], rows(0.8, 0.2))
    assert torch.allclose(combine(MGDA(), rows([1, 0], [3, 0]))[0], rows(1.0, 0))
    assert combine(MGDA(), rows([1, 0], [-3, 0]))[0].norm() < 1e-15


@pytest.mark.parametrize('normalization', ['l2', 'loss', 'loss+'])
def test_mgda_normalizes_for_the_weights_only(normalization):
    gradients, losses = JACOBIANS['far-apart'], rows(1.0, 1e-3, 5.0, 20.0)
    divisors = torch.ones(4, dtype=torch.float64)
    if normalization != 'loss':
        divisors = divisors * gradients.norm(dim=1)
    if normalization != 'l2':
        divisors = divisors * losses
    combined, weights = combine(MGDA(normalization=normalization), gradients, losses)
    scaled = gradients / divisors[:, None]
    assert relative_error(weights @ scaled, reference.shortest_in_hull(scaled)) < 1e-9
    assert torch.allclose(combined, weights @ gradients)


def test_mgda_refuses_what_it_cannot_divide_by():
    assert MGDA(normalization='loss').loss_transform == 'own' and MGDA().loss_transform == 'any'
    with pytest.raises(ValueError, match='must be positive'):
        combine(MGDA(normalization='loss+'), normal(2, 3), rows(1.0, -0.5))
    with pytest.raises(ValueError, match='normalization'):
        MGDA(normalization='L2')


# ---- IMTL-G, ConFIG, Aligned-MTL: linear algebra ----


@pytest.mark.parametrize('name, scale', [case for case in CASES if case[0] in INDEPENDENT])
def test_imtl_g_has_equal_projections(name, scale):
    gradients = JACOBIANS[name] * scale
    combined, weights = combine(IMTLG(), gradients)
    projections = unit(gradients) @ combined
    assert torch.allclose(projections, projections[0].expand_as(projections), rtol=1e-8, atol=0)
    assert projections[0] > 0 and abs(float(weights.sum())) == pytest.approx(1)


def test_imtl_g_of_two_tasks_has_weights_in_inverse_proportion_to_the_norms():
    for gradients in (rows([1, 0], [3, 4]), rows([1, 0], [0, 5]), rows([1, 0], [5, 0]), rows([1, 1e-5], [5, 0])):
        assert torch.allclose(combine(IMTLG(), gradients)[1], rows(5, 1) / 6, rtol=1e-6)
    assert combine(IMTLG(), rows([1, 0], [-5, 0]))[0].norm() == 0


def test_imtl_g_is_zero_where_only_zero_has_equal_projections():
    combined, weights = combine(IMTLG(), rows([1, 0], [-2, 0], [0, 1]))
    assert combined.norm() == 0 and weights.norm() == 0


def test_imtl_g_does_not_point_uphill():
    """The closed form's weights sum to 1 even where that turns the direction round."""
    gradients = unit(rows([0, 0.2, 1], [1, 0, 1], [-1, 0, 1])) * rows([0.01], [1], [1])
    closed_form = torch.linalg.solve(unit(gradients) @ unit(gradients).T, torch.ones(3, dtype=torch.float64))
    assert (closed_form / gradients.norm(dim=1)).sum() < 0
    combined, weights = combine(IMTLG(), gradients)
    projections = unit(gradients) @ combined
    assert torch.allclose(projections, projections[0].expand(3)) and projections[0] > 0
    assert float(weights.sum()) == pytest.approx(-1)


@pytest.mark.parametrize('name, scale', [case for case in CASES if case[0] in INDEPENDENT])
def test_config_has_equal_cosines_and_the_length_of_the_projections(name, scale):
    gradients = JACOBIANS[name] * scale
    combined, _ = combine(ConFIG(), gradients)
    cosines = unit(gradients) @ unit(combined)
    assert torch.allclose(cosines, cosines[0].expand_as(cosines), rtol=1e-8, atol=0) and cosines[0] > 0
    assert torch.allclose(combined.norm(), (gradients @ unit(combined)).sum(), rtol=1e-8, atol=0)


def test_config_on_special_pairs():
    assert torch.allclose(combine(ConFIG(), rows([2, 0], [0, 2]))[0], rows(2.0, 2.0))
    assert torch.allclose(combine(ConFIG(), rows([1, 0], [3, 0]))[0], rows(4.0, 0.0))
    assert combine(ConFIG(), rows([1, 0], [-3, 0]))[0].norm() == 0


@pytest.mark.parametrize('mode', ['min', 'median', 'rmse'])
@pytest.mark.parametrize('name, scale', CASES)
def test_aligned_mtl_sums_gradients_of_condition_number_one(name, mode, scale):
    gradients = JACOBIANS[name] * scale
    left, values, right = torch.linalg.svd(gradients, full_matrices=False)
    kept = values > 1e-8 * values.max()
    size = {'min': values[kept].min(), 'median': values[kept].median(), 'rmse': values[kept].square().mean().sqrt()}
    aligned = size[mode] * left[:, kept] @ right[kept]
    stretched = torch.linalg.svdvals(aligned)[: int(kept.sum())]
    assert float(stretched.max() / stretched.min()) == pytest.approx(1)
    assert relative_error(combine(AlignedMTL(scale_mode=mode), gradients)[0], aligned.sum(0)) < 1e-5


def test_aligned_mtl_takes_float32_noise_for_no_component():
    exact = normal(3, 50)[[0, 1, 0]]
    noisy = exact + 1e-7 * normal(3, 50, seed=1)
    assert relative_error(combine(AlignedMTL(), noisy)[0], combine(AlignedMTL(), exact)[0]) < 1e-6
    with pytest.raises(ValueError, match='scale_mode'):
        AlignedMTL(scale_mode='max')


@pytest.mark.parametrize('mode', ['min', 'median', 'rmse'])
@pytest.mark.parametrize('scale', [1e-6, 1.0, 1e6])
@pytest.mark.parametrize('size, angle', [(1e-2, 1e-4), (1e-3, 1e-3), (1e-4, 9e-3), (1e-4, 1e-3), (1e-4, 1e-5)])
def test_aligned_mtl_does_not_take_a_small_angle_for_none_where_tasks_are_far_apart(size, angle, scale, mode):
    gradients = scale * rows([1, 0, 0], [size, size * angle, 0])
    left, values, right = torch.linalg.svd(gradients, full_matrices=False)
    length = {'min': values.min(), 'median': values.median(), 'rmse': values.square().mean().sqrt()}[mode]
    combined = combine(AlignedMTL(scale_mode=mode), gradients)[0]
    assert relative_error(combined, length * left.sum(0) @ right) < 1e-6


@pytest.mark.parametrize('size', [1.0, 1e-2, 1e-4])
def test_aligned_mtl_of_a_dependent_task_has_the_others_components_at_any_distance(size):
    two = normal(2, 50) * rows([1.0], [size])
    three = torch.cat([two, two.sum(0, keepdim=True)])
    left, values, right = torch.linalg.svd(three, full_matrices=False)
    noisy = torch.cat([two, three[2:] * (1 + 3e-8 * normal(1, 50, seed=1))])  # the rounding of float32
    want = values[1] * left[:, :2].sum(0) @ right[:2]
    assert relative_error(combine(AlignedMTL(), three)[0], want) < 1e-9
    assert relative_error(combine(AlignedMTL(), noisy)[0], want) < 1e-7 / size


def test_aligned_mtl_leaves_out_what_float64_does_not_resolve():
    for size in (1e-18, 1e-100):
        combined, weights = combine(AlignedMTL(), rows([1, 0], [0, size]))
        assert torch.allclose(combined, rows(1.0, 0)) and torch.allclose(weights, rows(1.0, 0))


@pytest.mark.parametrize('name', INDEPENDENT)
def test_torchjd_agrees_where_gradients_are_independent(name):
    gradients, ones = JACOBIANS[name], torch.ones(len(JACOBIANS[name]), dtype=torch.float64)
    sign = torch.sign(torchjd.aggregation.IMTLG()(gradients) @ gradients[0])
    for ours, theirs in (
        (IMTLG(), sign * torchjd.aggregation.IMTLG()(gradients)),
        (ConFIG(), torchjd.aggregation.ConFIG()(gradients)),
        (AlignedMTL(), torchjd.aggregation.AlignedMTL(ones)(gradients)),
    ):
        assert relative_error(combine(ours, gradients)[0], theirs) < 1e-6


# ---- UPGrad, DualProj: no conflict ----


@pytest.mark.parametrize('name, scale', CASES)
def test_upgrad_and_dualproj_project_on_the_dual_cone(name, scale):
    gradients = JACOBIANS[name] * scale
    zeros = torch.zeros(len(gradients), dtype=torch.float64)
    projected = [reference.project_on_polyhedron(row, gradients / scale, zeros) for row in gradients / scale]
    upgrad, weights = combine(UPGrad(), gradients)
    size = gradients.norm(dim=1).max()
    assert relative_error(upgrad, scale * sum(projected) / len(projected), 1e-6 * size) < 1e-6
    assert weights.min() >= 1 / len(gradients)
    dualproj, _ = combine(DualProj(), gradients)
    nearest = reference.project_on_polyhedron((gradients / scale).mean(0), gradients / scale, zeros)
    assert relative_error(dualproj, scale * nearest, 1e-6 * size) < 1e-6
    for combined in (upgrad, dualproj):
        assert (unit(gradients) @ combined > -1e-9 * size).all()
    if name in ('normal-0', 'aligned', 'far-apart'):
        assert relative_error(upgrad, scale * sum(projected) / len(projected)) < 1e-9
        assert relative_error(dualproj, scale * nearest) < 1e-9


@pytest.mark.parametrize('method', [UPGrad, DualProj])
def test_without_conflict_the_mean_is_left_as_it_is(method):
    for gradients in (rows([1, 0], [0, 2]), rows([1, 0], [3, 0]), JACOBIANS['aligned'].abs()):
        assert torch.allclose(combine(method(), gradients)[0], gradients.mean(0))
    assert combine(method(), rows([1, 0], [-3, 0]))[0].norm() < 1e-15


@pytest.mark.parametrize('method', [PCGrad, UPGrad, DualProj])
def test_two_conflicting_tasks_do_not_conflict_with_the_result(method):
    for seed in range(20):
        gradients = normal(2, 3, seed=seed)
        assert (gradients @ combine(method(), gradients)[0] > -1e-12).all()


# ---- CAGrad ----


@pytest.mark.parametrize('c', [0.4, 0.9])
@pytest.mark.parametrize('name', REGULAR)
def test_cagrad_is_the_best_worst_case_in_its_ball(name, c):
    gradients = JACOBIANS[name]
    combined = combine(CAGrad(c=c, rescale=False), gradients)[0] / len(gradients)
    mean = gradients.mean(0)
    assert (combined - mean).norm() <= c * mean.norm() * (1 + 1e-9)
    assert relative_error(combined, reference.conflict_averse(gradients, c)) < 1e-6


@pytest.mark.parametrize('c', [0.1, 0.4, 0.9, 1.5])
@pytest.mark.parametrize('name, scale', CASES)
def test_cagrad_has_no_duality_gap(name, c, scale):
    """The dual's value at any point of the simplex bounds the worst improvement; here they meet."""
    gradients = JACOBIANS[name] * scale
    combined, weights = combine(CAGrad(c=c, rescale=False), gradients)
    direction, mean = combined / len(gradients), gradients.mean(0)
    shift = weights / len(gradients) - 1 / len(gradients)
    bounds = [math.inf if name in REGULAR else 0.0]
    if shift.sum() > 0:
        point = (shift / shift.sum()) @ gradients
        bounds.append(float(point @ mean + c * mean.norm() * point.norm()))
    worst = float((gradients @ direction).min())
    assert shift.min() >= -1e-12
    assert abs(min(bounds) - worst) < 1e-9 * float(gradients.norm(dim=1).min() * mean.norm())
    assert (direction - mean).norm() <= c * mean.norm() * (1 + 1e-9)


def test_cagrad_of_two_tasks_matches_a_fine_search_of_the_dual():
    for seed in range(5):
        gradients = normal(2, 3, seed=seed) * rows([1.0], [10.0**-seed])
        mean, c = gradients.mean(0), 0.5
        shares = torch.linspace(0, 1, 100001, dtype=torch.float64)
        points = shares[:, None] * gradients[0] + (1 - shares[:, None]) * gradients[1]
        point = points[(points @ mean + c * mean.norm() * points.norm(dim=1)).argmin()]
        want = mean + c * mean.norm() * unit(point)
        assert relative_error(combine(CAGrad(c=c, rescale=False), gradients)[0] / 2, want) < 1e-3


def test_cagrad_closed_forms_and_scale():
    # Symmetric gradients: the mean is the worst-case direction and is lengthened by the radius.
    assert torch.allclose(combine(CAGrad(c=0.5, rescale=False), SYMMETRIC)[0], 1.5 * SYMMETRIC.sum(0))
    assert torch.allclose(combine(CAGrad(c=0.5), SYMMETRIC)[0], 1.5 / 1.25 * SYMMETRIC.sum(0))
    assert torch.allclose(combine(CAGrad(c=0.0), normal(3, 4))[0], normal(3, 4).sum(0))
    assert torch.allclose(combine(CAGrad(c=0.4, rescale=False), rows([1, 0], [1, 0]))[0], rows(2.8, 0))
    # Opposed: towards the shorter one, of which the mean is the opposite.
    assert torch.allclose(combine(CAGrad(c=0.5, rescale=False), rows([1, 0], [-3, 0]))[0], rows(-1.0, 0))
    assert combine(CAGrad(c=0.5), rows([1, 0], [-1, 0]))[0].norm() < 1e-15
    with pytest.raises(ValueError, match='c must be'):
        CAGrad(c=-0.1)


def test_cagrad_at_a_stationary_point_stays_near_the_mean():
    gradients = rows([1, 0], [-1, 0], [0, 1])
    assert torch.allclose(combine(CAGrad(c=0.4, rescale=False), gradients)[0], gradients.sum(0))
