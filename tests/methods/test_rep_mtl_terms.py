"""TSR and CSA as functions of the saliency, against the literal formulas."""

import math

import pytest
import torch

from mmrepmtl.methods import csa
from mmrepmtl.methods.rep_mtl import cross_task_saliency_alignment, task_saliency_regulation
from tests.methods.rep_mtl_reference import literal_csa, literal_tsr

SHAPES = {
    'TBC': (3, 4, 6),
    'TBCN, C<N': (3, 4, 3, 7),
    'TBCN, C>N': (2, 5, 9, 4),
    'TBCN, C=N': (2, 3, 5, 5),
    'TBCHW, C<N': (3, 3, 4, 3, 4),
    'TBCHW, C>N': (3, 3, 8, 2, 3),
    'T=1': (1, 4, 3, 5),
    'B=1': (3, 1, 4, 5),
    'C=1': (3, 4, 1, 5),
    'N=1': (3, 4, 5, 1),
    'all 1': (1, 1, 1, 1),
    'C=1 vector': (2, 3, 1),
}
TERMS = {'tsr': (task_saliency_regulation, literal_tsr), 'csa': (cross_task_saliency_alignment, literal_csa)}


def random_saliency(shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def value_and_gradient(function, saliency, *args):
    saliency = saliency.clone().requires_grad_()
    value = function(saliency, *args)
    (gradient,) = torch.autograd.grad(value, saliency)
    return value.detach(), gradient


def assert_equal(term, saliency, *args, rtol=1e-10):
    ours, literal = TERMS[term]
    value, gradient = value_and_gradient(ours, saliency, *args)
    expected, expected_gradient = value_and_gradient(literal, saliency, *args)
    torch.testing.assert_close(value, expected, rtol=rtol, atol=1e-14)
    # Relative to the largest gradient: single elements may cancel.
    size = expected_gradient.abs().max().item()
    torch.testing.assert_close(gradient, expected_gradient, rtol=rtol, atol=max(rtol * size, 1e-15))


@pytest.mark.parametrize('term', TERMS)
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES.keys())
def test_value_and_gradient_equal_the_literal_formula(term, shape):
    assert_equal(term, random_saliency(shape))


@pytest.mark.parametrize('temperature', [0.07, 0.5, 3.0])
def test_csa_temperature(temperature):
    assert_equal('csa', random_saliency((3, 4, 5, 6)), temperature)


@pytest.mark.parametrize('shape', [(3, 5, 4, 6), (3, 5, 9, 4)])
def test_csa_is_independent_of_the_chunks(shape, monkeypatch):
    saliency = random_saliency(shape)
    for elements in (1, 150):
        monkeypatch.setattr(csa, '_CHUNK_ELEMENTS', elements)
        assert_equal('csa', saliency)


@pytest.mark.parametrize('shape', [(2, 3, 3, 5), (2, 3, 5, 3), (3, 2, 4)])
@pytest.mark.parametrize('term', TERMS)
def test_gradcheck(term, shape):
    assert torch.autograd.gradcheck(TERMS[term][0], (random_saliency(shape, seed=3).requires_grad_(),))


@pytest.mark.parametrize('shape', [(2, 3, 3, 5), (2, 3, 5, 3)])
def test_gradcheck_of_the_streamed_function(shape):
    saliency = random_saliency(shape, seed=4).requires_grad_()
    scale = torch.rand(shape[:2], dtype=torch.float64) + 0.5
    assert torch.autograd.gradcheck(lambda x: csa._Moments.apply(x, scale)[:3], (saliency,))


def test_the_streamed_function_refuses_a_second_derivative():
    saliency = random_saliency((2, 3, 3, 5)).requires_grad_()
    (gradient,) = torch.autograd.grad(cross_task_saliency_alignment(saliency), saliency, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        gradient.sum().backward()


@pytest.mark.parametrize('layout', ['transposed', 'spatial last in memory', 'truncated'])
@pytest.mark.parametrize('term', TERMS)
def test_strided_saliency(term, layout):
    saliency = random_saliency((3, 6, 5, 4, 3))
    strided = {
        'transposed': saliency.transpose(0, 1).contiguous().transpose(0, 1),
        'spatial last in memory': saliency.movedim(2, -1).contiguous().movedim(-1, 2),
        'truncated': saliency[:, :4],
    }[layout]
    assert_equal(term, strided)


@pytest.mark.parametrize('term', TERMS)
@pytest.mark.parametrize('factor', [1e-30, 1e-8, 1e8])
@pytest.mark.parametrize('shape', [(3, 4, 6, 5), (3, 4, 5, 30), (3, 4, 7)])
def test_float32_is_right_at_any_scale(term, factor, shape):
    saliency = random_saliency(shape)
    ours, literal = TERMS[term]
    expected, expected_gradient = value_and_gradient(literal, saliency)
    value, gradient = value_and_gradient(ours, (saliency * factor).float())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-6)
    size = expected_gradient.abs().max().item()
    torch.testing.assert_close(gradient.double() * factor, expected_gradient, rtol=1e-3, atol=1e-4 * size)


@pytest.mark.parametrize('scales', [[1.0, 1e-4, 1e4, 1.0], [1e-8, 1e-8, 1e-3, 1e-8]])
def test_float32_samples_of_different_scale(scales):
    saliency = random_saliency((3, 4, 6, 5)) * torch.tensor(scales, dtype=torch.float64)[:, None, None]
    expected, _ = value_and_gradient(literal_csa, saliency)
    value, gradient = value_and_gradient(cross_task_saliency_alignment, saliency.float())
    if max(scales) / min(scales) < 1e6:
        torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-6)
    assert gradient.isfinite().all()


@pytest.mark.parametrize('term', TERMS)
def test_bfloat16_is_computed_in_float32(term):
    saliency = random_saliency((3, 4, 6, 5), dtype=torch.bfloat16)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        value = TERMS[term][0](saliency)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, TERMS[term][0](saliency.float()), rtol=1e-6, atol=1e-6)


def zero_cases():
    saliency = random_saliency((3, 4, 5, 6))
    cases = {}
    for name, index in dict(
        task=0,
        sample=(slice(None), 1),
        task_of_sample=(1, 2),
        position=(..., 3),
        task_at_position=(0, slice(None), slice(None), 2),
        channel=(slice(None), slice(None), 0),
        all_but_one_sample=(slice(None), slice(1, None)),
        everything=...,
    ).items():
        case = saliency.clone()
        case[index] = 0
        cases[name] = case
    return cases


@pytest.mark.parametrize('name', zero_cases())
@pytest.mark.parametrize('term', TERMS)
def test_zero_saliency(term, name):
    saliency = zero_cases()[name]
    assert_equal(term, saliency)
    assert value_and_gradient(TERMS[term][0], saliency.float())[1].isfinite().all()


def test_opposite_channel_means_are_no_anchor_but_an_affinity():
    saliency = random_saliency((2, 4, 5, 6))
    saliency[:, 1] -= saliency[:, 1].mean(-1, keepdim=True)  # Rounding noise is left, as after a BatchNorm.
    value, gradient = value_and_gradient(cross_task_saliency_alignment, saliency)
    others = saliency[:, [0, 2, 3]]
    torch.testing.assert_close(value, literal_csa(others), rtol=1e-10, atol=0)
    assert not gradient[:, 1].any()
    value32, _ = value_and_gradient(cross_task_saliency_alignment, saliency.float())
    torch.testing.assert_close(value32.double(), value, rtol=1e-4, atol=0)


@pytest.mark.parametrize('dtype, tiny', [(torch.float32, 1e-7), (torch.float64, 1e-15)])
def test_zero_is_relative_to_the_batch(dtype, tiny):
    saliency = random_saliency((3, 4, 5, 6))
    zero = saliency.clone()
    zero[1, 2] = 0
    small = saliency.clone()
    small[1, 2] *= tiny
    literal, _ = value_and_gradient(literal_csa, zero)
    value, gradient = value_and_gradient(cross_task_saliency_alignment, (small * 1e-5).to(dtype))
    torch.testing.assert_close(value.double(), literal, rtol=1e-4 if dtype == torch.float32 else 1e-10, atol=0)
    # The anchor of the sample still has a column of the task, so a gradient is left, but no 1 / tiny.
    assert gradient.abs().max() * 1e-5 < 10


def test_one_sample_has_no_contrast():
    value, gradient = value_and_gradient(cross_task_saliency_alignment, random_saliency((3, 1, 4, 5)))
    assert value == 0 and not gradient.any()


def test_tsr_closed_forms():
    equal = torch.ones(4, 2, 3, 5, dtype=torch.float64)
    assert task_saliency_regulation(equal).item() == pytest.approx(math.log(4), rel=1e-14)
    owned = torch.zeros(4, 2, 3, 5)
    owned[2] = -3
    assert task_saliency_regulation(owned).item() == 0
    expected = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    mixed = torch.tensor([3.0, -1.0], dtype=torch.float64).reshape(2, 1, 1)
    assert task_saliency_regulation(mixed).item() == pytest.approx(expected, rel=1e-14)


def test_csa_closed_form_of_one_channel():
    # All similarities are 1: -ln(e / ((B - 1) e)).
    value = cross_task_saliency_alignment(random_saliency((3, 5, 1, 4)).abs(), 0.3)
    assert value.item() == pytest.approx(math.log(4), rel=1e-12)


def test_tsr_floor_leaves_weak_positions_out():
    saliency = random_saliency((3, 4, 5, 30))
    total = saliency.mean(2).abs().sum(0)
    kept = total >= 0.7 * total.mean()
    assert 0 < kept.sum() < kept.numel()
    chosen = saliency.movedim(2, -1)[:, kept].unsqueeze(-1)
    value, gradient = value_and_gradient(task_saliency_regulation, saliency, 0.7)
    torch.testing.assert_close(value, literal_tsr(chosen), rtol=1e-10, atol=0)
    assert not gradient.movedim(2, -1)[:, ~kept].any() and gradient.movedim(2, -1)[:, kept].abs().amax(-1).all()
    assert task_saliency_regulation(torch.zeros(3, 4, 5), 0.7) == 0


@pytest.mark.parametrize('term', TERMS)
def test_invariances(term):
    function = TERMS[term][0]
    saliency = random_saliency((3, 4, 5, 6))
    value = function(saliency)
    for other in (
        saliency[[2, 0, 1]],
        saliency[:, [3, 1, 0, 2]],
        saliency[..., [5, 4, 3, 0, 1, 2]],
        saliency[:, :, [4, 2, 0, 1, 3]],
        saliency * 1e-7,
        -saliency,
    ):
        torch.testing.assert_close(function(other), value, rtol=1e-12, atol=0)


@pytest.mark.parametrize('term', TERMS)
def test_gradient_descent_does_what_the_name_says(term):
    saliency = random_saliency((3, 4, 5, 6))
    value, gradient = value_and_gradient(TERMS[term][0], saliency)
    assert TERMS[term][0](saliency - 1e-3 * gradient / gradient.norm()) < value


@pytest.mark.parametrize('term', TERMS)
def test_wrong_shapes_are_refused(term):
    with pytest.raises(ValueError, match=r'got shape \(3, 4\)'):
        TERMS[term][0](torch.ones(3, 4))


def test_product_settings_are_restored():
    backends = [
        module.matmul
        for module in (torch.backends.cuda, torch.backends.mkldnn)
        if hasattr(getattr(module, 'matmul', None), 'fp32_precision')
    ]
    if not backends:
        pytest.skip('this torch has no fp32_precision settings')
    before = [backend.fp32_precision for backend in backends]
    seen = []
    original = csa._small_gram

    def spy(x):
        seen.append([backend.fp32_precision for backend in backends])
        return original(x)

    try:
        for backend in backends:
            backend.fp32_precision = 'tf32'
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(csa, '_small_gram', spy)
            value_and_gradient(cross_task_saliency_alignment, random_saliency((2, 3, 4)).float())
        assert [backend.fp32_precision for backend in backends] == ['tf32'] * len(backends)
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value
    assert seen and all(value == 'ieee' for values in seen for value in values)
