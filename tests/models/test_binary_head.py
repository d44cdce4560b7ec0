"""The yes-or-no head against a plain loop over pixels."""

import math

import pytest
import torch

from mmrepmtl.registry import MODELS
from mmrepmtl.structures import MultiTaskDataSample

SIZE = (6, 8)
WEIGHTS = [None, 0.95, 'balanced']


def build_head(**arguments):
    decoder = dict(type='ConvDecoder', hidden_channels=4, num_convs=1, norm=None)
    head = MODELS.build(dict(type='BinaryHead', decoder=decoder) | arguments, default_args=dict(in_channels=[3]))
    head.task = head.target = 'edge'
    return head


def make_sample(index, size=SIZE, labelled=True):
    sample = MultiTaskDataSample(metainfo=dict(sample_idx=index, img_shape=size))
    if labelled:
        values = torch.rand(size, generator=torch.Generator().manual_seed(index))
        # Few positives in one image, many in another, and void pixels in both.
        target = (values < 0.15 + 0.3 * (index % 2)).long()
        sample.set_target('edge', target.masked_fill(values > 0.85, 255))
    return sample


def raw_output(batch, scale=4.0):
    generator = torch.Generator().manual_seed(9)
    return (scale * torch.randn(batch, 1, *SIZE, generator=generator, dtype=torch.float64)).requires_grad_()


def reference(output, samples, positive_weight):
    """Sum and count, pixel by pixel; the definition of the cross-entropy."""
    total, count = 0.0, 0
    for row, sample in zip(output.detach(), samples, strict=True):
        if 'edge' not in sample.targets:
            continue
        pixels = [(x, t) for x, t in zip(row.flatten().tolist(), sample.edge_list, strict=True) if t != 255]
        negatives = sum(t == 0 for _, t in pixels)
        w = {None: 1.0, 'balanced': negatives / len(pixels)}.get(positive_weight, positive_weight)
        other = 1.0 if positive_weight is None else 1 - w
        for x, t in pixels:
            probability = 1 / (1 + math.exp(-x))
            total -= w * math.log(probability) if t == 1 else other * math.log(1 - probability)
        count += len(pixels)
    return total, count


@pytest.fixture
def samples():
    made = [make_sample(0), make_sample(1), make_sample(2, labelled=False)]
    for sample in made[:2]:
        sample.edge_list = sample.targets['edge'].flatten().tolist()
    return made


@pytest.mark.parametrize('weight', WEIGHTS)
def test_loss_equals_the_definition_pixel_by_pixel(samples, weight):
    output = raw_output(3)
    terms = build_head(positive_weight=weight).loss_terms(output, samples)
    assert list(terms) == ['bce']
    numerator, count = terms['bce']
    expected, expected_count = reference(output, samples, weight)
    assert numerator.item() == pytest.approx(expected, rel=1e-9)
    assert count.item() == expected_count > 0
    (gradient,) = torch.autograd.grad(numerator, output)
    assert gradient[2].eq(0).all() and gradient[:2].abs().max() > 0


def test_balance_is_that_of_each_image_and_so_does_not_depend_on_the_batch(samples):
    head, output = build_head(positive_weight='balanced'), raw_output(3)
    together, _ = head.loss_terms(output, samples)['bce']
    alone = sum(head.loss_terms(output[i : i + 1], samples[i : i + 1])['bce'][0] for i in range(3))
    assert together.item() == pytest.approx(alone.item(), rel=1e-12)


@pytest.mark.parametrize('weight', WEIGHTS)
def test_without_labels_the_loss_is_a_connected_zero(weight):
    head, output = build_head(positive_weight=weight), raw_output(2)
    void = make_sample(0)
    void.set_target('edge', torch.full(SIZE, 255))
    numerator, count = head.loss_terms(output, [void, make_sample(1, labelled=False)])['bce']
    assert (numerator.item(), count.item()) == (0, 0)
    (gradient,) = torch.autograd.grad(numerator, output, create_graph=True)
    assert gradient.eq(0).all()


@pytest.mark.parametrize('weight', WEIGHTS)
def test_the_loss_is_twice_differentiable_and_finite_for_large_scores(samples, weight):
    head = build_head(positive_weight=weight)

    def loss(x):
        return head.loss_terms(x, samples[:1])['bce'][0]

    assert torch.autograd.gradgradcheck(loss, raw_output(1, scale=1.0))
    large = torch.full((1, 1, *SIZE), 1000.0, dtype=torch.float64)
    large[..., ::2] *= -1
    assert loss(large).isfinite()


def test_predictions_are_probabilities_at_the_size_of_the_target():
    head = build_head()
    output = raw_output(3).detach()
    large = make_sample(0, size=(12, 16))
    large.set_metainfo(dict(img_shape=SIZE))
    cut = make_sample(1, size=(4, 5), labelled=False)
    first, second, third = head.predict(output, [make_sample(0), large, cut])
    torch.testing.assert_close(first, output[0, 0].sigmoid())
    assert second.shape == (12, 16) and third.shape == (4, 5)
    torch.testing.assert_close(third, output[2, 0, :4, :5].sigmoid())


@pytest.mark.parametrize('weight', [0.0, 1.0, 20, 'even'])
def test_impossible_weights_are_named(weight):
    with pytest.raises(ValueError, match=f'positive_weight={weight!r}'):
        build_head(positive_weight=weight)
