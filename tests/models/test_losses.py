import math

import pytest
import torch
import torch.nn.functional as F

from mmrepmtl.models.losses import angular_terms, cross_entropy_terms, regression_terms, unit_vectors

DOUBLE = torch.float64


def test_cross_entropy_equals_a_loop_over_pixels():
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 3, 5, dtype=DOUBLE)
    target = torch.randint(0, 4, (2, 3, 5))
    target[0, 1] = 255
    weight = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=DOUBLE)
    plain, weighted, pixels, mass = 0.0, 0.0, 0, 0.0
    for b in range(2):
        for h in range(3):
            for w in range(5):
                label = int(target[b, h, w])
                if label == 255:
                    continue
                scores = logits[b, :, h, w].tolist()
                loss = math.log(sum(math.exp(score) for score in scores)) - scores[label]
                plain, pixels = plain + loss, pixels + 1
                weighted, mass = weighted + loss * float(weight[label]), mass + float(weight[label])
    numerator, count = cross_entropy_terms(logits, target, 255)
    assert numerator.item() == pytest.approx(plain, rel=1e-12)
    assert count.item() == pixels == 25
    numerator, count = cross_entropy_terms(logits, target, 255, weight)
    assert numerator.item() == pytest.approx(weighted, rel=1e-12)
    assert count.item() == pytest.approx(mass)


@pytest.mark.parametrize(
    ('penalty', 'function'),
    [
        ('l1', abs),
        ('mse', lambda r: r * r),
        ('smooth_l1', lambda r: 0.5 * r * r if abs(r) < 1 else abs(r) - 0.5),
    ],
)
def test_regression_equals_a_loop_and_ignores_what_is_invalid(penalty, function):
    prediction = torch.tensor([0.5, -2.0, 3.0, 7.0], dtype=DOUBLE, requires_grad=True)
    target = torch.tensor([0.0, 1.0, math.nan, math.inf], dtype=DOUBLE)
    numerator, count = regression_terms(prediction, target, target.isfinite(), penalty)
    assert numerator.item() == pytest.approx(function(0.5) + function(-3.0))
    assert count.item() == 2
    (gradient,) = torch.autograd.grad(numerator, prediction)
    assert gradient.isfinite().all()
    assert gradient[2:].eq(0).all()


def test_angular_equals_a_loop_and_ignores_zero_normals():
    torch.manual_seed(0)
    prediction = 5 * torch.randn(2, 3, 2, 3, dtype=DOUBLE)
    target = F.normalize(torch.randn(2, 3, 2, 3, dtype=DOUBLE), dim=1)
    target[1, :, 0, 1] = 0
    expected, pixels = 0.0, 0
    for b in range(2):
        for h in range(2):
            for w in range(3):
                p, t = prediction[b, :, h, w].tolist(), target[b, :, h, w].tolist()
                if t == [0, 0, 0]:
                    continue
                length = math.sqrt(sum(x * x for x in p))
                expected += 1 - sum(x * y for x, y in zip(p, t, strict=True)) / length
                pixels += 1
    numerator, count = angular_terms(prediction, target)
    assert numerator.item() == pytest.approx(expected, rel=1e-12)
    assert count.item() == pixels == 11


def test_normalisation_has_finite_derivatives_of_both_orders_at_zero():
    vectors = torch.zeros(1, 3, 2, dtype=DOUBLE, requires_grad=True)
    with torch.no_grad():
        vectors[0, :, 1] = torch.tensor([3.0, 0.0, 4.0])
    unit = unit_vectors(vectors)
    assert unit[0, :, 0].eq(0).all()
    torch.testing.assert_close(unit[0, :, 1], torch.tensor([0.6, 0.0, 0.8], dtype=DOUBLE))
    (gradient,) = torch.autograd.grad(unit.sum(), vectors, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), vectors)
    assert gradient.isfinite().all()
    assert second.isfinite().all()
    assert second[0, :, 1].abs().max() > 0


@pytest.mark.parametrize('scale', [1e-6, 1.0, 1e6])
def test_normalisation_is_right_at_any_length_in_float32(scale):
    torch.manual_seed(0)
    vectors = torch.randn(2, 3, 4)
    torch.testing.assert_close(unit_vectors(scale * vectors), F.normalize(vectors, dim=1))


@pytest.mark.parametrize('name', ['cross_entropy', 'l1', 'mse', 'smooth_l1', 'angular'])
def test_losses_are_twice_differentiable(name):
    torch.manual_seed(0)
    prediction = torch.randn(2, 3, 2, 2, dtype=DOUBLE, requires_grad=True)
    if name == 'cross_entropy':
        target = torch.tensor([[[0, 255], [1, 2]], [[2, 2], [255, 0]]])

        def loss(p):
            return cross_entropy_terms(p, target, 255)[0]
    elif name == 'angular':
        target = F.normalize(torch.randn(2, 3, 2, 2, dtype=DOUBLE), dim=1)
        target[0, :, 1, 1] = 0

        def loss(p):
            return angular_terms(p, target)[0]
    else:
        target = torch.randn(2, 3, 2, 2, dtype=DOUBLE)
        valid = torch.rand(2, 3, 2, 2) > 0.3

        def loss(p):
            return regression_terms(p, target, valid, name)[0]

    assert torch.autograd.gradcheck(loss, prediction)
    assert torch.autograd.gradgradcheck(loss, prediction)
