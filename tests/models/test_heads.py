import math

import pytest
import torch
import torch.nn.functional as F

from mmrepmtl.registry import MODELS

from .toy import ALL_TASKS, head_configs, make_sample

SIZE = (16, 24)
#: Channels of each task's raw output.
OUTPUT_CHANNELS = dict(semseg=5, depth=1, normal=3, kind=4, pose=3)


def build_head(task, **arguments):
    head = MODELS.build(head_configs()[task] | arguments, default_args=dict(in_channels=[6]))
    head.task = task
    head.target = head.target or task
    return head


def raw_output(task, batch, dtype=torch.float64):
    torch.manual_seed(1)
    dense = task in ('semseg', 'depth', 'normal')
    return torch.randn(batch, OUTPUT_CHANNELS[task], *(SIZE if dense else ()), dtype=dtype, requires_grad=True)


def position_loss(task, values, truth):
    """Loss of the output ``values`` of one position, None where the label is invalid; ``truth`` is a list."""
    if task in ('semseg', 'kind'):
        return None if truth[0] == 255 else math.log(sum(math.exp(v) for v in values)) - values[truth[0]]
    if task == 'depth':
        return abs(values[0] - truth[0]) if truth[0] > 0 else None
    if task == 'normal':
        length = math.sqrt(sum(value**2 for value in values))
        return 1 - sum(v * t for v, t in zip(values, truth, strict=True)) / length if any(truth) else None
    return None if math.isnan(truth[0]) else (values[0] - truth[0]) ** 2


def reference_loss(task, output, samples):
    """Sum and count, one sample and one position after the other."""
    losses = []
    for row, sample in zip(output.detach(), samples, strict=True):
        target = sample.targets.get(task)
        if target is None:
            continue
        if task == 'pose':  # each number of the vector is a position of its own
            row = row[None]
        row = row.reshape(row.shape[0], -1)
        target = target.reshape(-1, row.shape[1])
        losses += [position_loss(task, row[:, p].tolist(), target[:, p].tolist()) for p in range(row.shape[1])]
    valid = [loss for loss in losses if loss is not None]
    return sum(valid), len(valid)


@pytest.mark.parametrize('task', ALL_TASKS)
def test_loss_equals_a_slow_loop_that_skips_what_is_unlabelled(task):
    samples = [
        make_sample(0, SIZE, dtype=torch.float64),
        make_sample(1, SIZE, missing=[task], dtype=torch.float64),
        make_sample(2, SIZE, dtype=torch.float64),
    ]
    head, output = build_head(task), raw_output(task, 3)
    assert head.labelled(samples) == [True, False, True]
    terms = head.loss_terms(output, samples)
    ((name, (numerator, count)),) = terms.items()
    expected, expected_count = reference_loss(task, output, samples)
    assert name == dict(semseg='ce', depth='l1', normal='cos', kind='ce', pose='mse')[task]
    assert numerator.item() == pytest.approx(expected, rel=1e-10)
    assert count.item() == expected_count > 0
    (gradient,) = torch.autograd.grad(numerator, output)
    assert gradient[1].eq(0).all()
    assert gradient[0].abs().max() > 0


@pytest.mark.parametrize('task', ALL_TASKS)
def test_a_batch_without_labels_gives_a_connected_zero(task):
    head, output = build_head(task), raw_output(task, 2)
    samples = [make_sample(index, SIZE, missing=[task]) for index in range(2)]
    ((numerator, count),) = head.loss_terms(output, samples).values()
    assert (numerator.item(), count.item()) == (0, 0)
    (gradient,) = torch.autograd.grad(numerator, output, create_graph=True)
    assert gradient.eq(0).all()


@pytest.mark.parametrize('task', ALL_TASKS)
def test_heads_are_twice_differentiable_to_the_representation_and_their_weights(task):
    head = build_head(task).double()
    torch.manual_seed(0)
    features = torch.randn(2, 6, 2, 3, dtype=torch.float64, requires_grad=True)
    samples = [make_sample(index, (4, 6), dtype=torch.float64) for index in range(2)]
    parameters = [parameter.detach().clone().requires_grad_() for parameter in head.parameters()]
    names = [name for name, _ in head.named_parameters()]

    def loss(z, *values):
        output = torch.func.functional_call(head, dict(zip(names, values, strict=True)), (z, (4, 6)))
        return sum(numerator for numerator, _ in head.loss_terms(output, samples).values())

    # The ReLU's and the absolute value's kinks are away from this point by more than the step.
    assert torch.autograd.gradgradcheck(lambda z: loss(z, *parameters), features, atol=1e-4)
    (saliency,) = torch.autograd.grad(loss(features, *parameters), features, create_graph=True)
    second = torch.autograd.grad(saliency.square().sum(), parameters, materialize_grads=True)
    assert sum(gradient.abs().sum() for gradient in second) > 0
    assert all(gradient.isfinite().all() for gradient in second)


@pytest.mark.parametrize('task', ALL_TASKS)
def test_losses_are_float32_under_bf16_autocast(task):
    head = build_head(task)
    samples = [make_sample(index, SIZE) for index in range(2)]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        output = head(torch.randn(2, 6, 4, 6, dtype=torch.bfloat16), SIZE)
        ((numerator, count),) = head.loss_terms(output, samples).values()
    assert output.dtype == numerator.dtype == torch.float32
    (plain,) = head.loss_terms(output, samples).values()
    assert torch.equal(plain[0], numerator)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        (half,) = head.loss_terms(output.bfloat16(), samples).values()
    assert half[0].dtype == torch.float32


@pytest.mark.parametrize('task', ['semseg', 'depth', 'normal'])
def test_dense_outputs_are_resized_with_aligned_corners(task):
    head = build_head(task)
    features = torch.randn(2, 6, 4, 6)
    output = head(features, SIZE)
    expected = F.interpolate(head.decoder(features), SIZE, mode='bilinear', align_corners=True)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(output[..., 0, 0], head.decoder(features)[..., 0, 0])


def test_class_weights_are_normalised_by_their_mass():
    head = build_head('semseg', class_weight=[1.0, 2.0, 3.0, 4.0, 0.5])
    output, samples = raw_output('semseg', 2), [make_sample(index, SIZE) for index in range(2)]
    ((numerator, mass),) = head.loss_terms(output, samples).values()
    target = torch.stack([sample.targets['semseg'] for sample in samples])
    expected = F.cross_entropy(output, target, weight=head.class_weight.double(), ignore_index=255)
    assert (numerator / mass).item() == pytest.approx(expected.item())


@pytest.mark.parametrize('loss', ['mse', 'smooth_l1'])
def test_depth_has_other_losses(loss):
    ((term, (numerator, count)),) = (
        build_head('depth', loss=loss).loss_terms(raw_output('depth', 1), [make_sample(0, SIZE)]).items()
    )
    assert term == loss
    assert numerator > 0


def test_infinite_and_nan_depth_is_invalid():
    sample = make_sample(0, SIZE, dtype=torch.float64)
    clean = sample.targets['depth'].clone()
    clean[0, :2] = 0
    dirty = clean.clone()
    dirty[0, 0], dirty[0, 1] = math.inf, math.nan
    head, output, results = build_head('depth'), raw_output('depth', 1), []
    for depth in (clean, dirty):
        sample.set_target('depth', depth)
        results.append(head.loss_terms(output, [sample])['l1'])
    assert results[0] == results[1]


def test_predictions_have_their_formats():
    samples = [make_sample(0, SIZE)]
    predictions = {task: build_head(task).predict(raw_output(task, 1).detach(), samples)[0] for task in ALL_TASKS}
    assert predictions['semseg'].shape == SIZE
    assert predictions['semseg'].dtype == torch.int64
    assert predictions['depth'].shape == (1, *SIZE)
    assert predictions['normal'].shape == (3, *SIZE)
    torch.testing.assert_close(predictions['normal'].norm(dim=0), torch.ones(SIZE, dtype=torch.float64))
    assert predictions['kind'].shape == (4,)
    assert predictions['kind'].sum().item() == pytest.approx(1)
    torch.testing.assert_close(predictions['pose'], raw_output('pose', 1)[0].detach())


def test_predictions_are_cut_from_the_padding_and_resized_to_the_target():
    head, output = build_head('depth'), raw_output('depth', 2).detach()
    plain, large = make_sample(0, (10, 20)), make_sample(1, (10, 20), missing=['depth'])
    large.set_target('depth', torch.ones(1, 31, 61))
    unlabelled = make_sample(2, (10, 20), missing=['depth'])
    first, second = head.predict(output, [plain, large])
    torch.testing.assert_close(first, output[0, :, :10, :20])
    assert second.shape == (1, 31, 61)
    torch.testing.assert_close(second[:, ::30, ::60], output[1, :, :10:9, :20:19])
    assert head.predict(output[:1], [unlabelled])[0].shape == (1, 10, 20)


def test_a_target_of_another_size_is_named():
    sample = make_sample(0, (8, 8))
    with pytest.raises(ValueError, match=r"'depth'.*\(1, 8, 8\).*\(1, 16, 24\)"):
        build_head('depth').loss_terms(raw_output('depth', 1), [sample])


def test_a_head_reads_the_target_it_names():
    head = build_head('depth', target='disparity')
    sample = make_sample(0, SIZE)
    assert head.labelled([sample]) == [False]
    sample.set_target('disparity', torch.ones(1, *SIZE))
    assert head.labelled([sample]) == [True]


@pytest.mark.parametrize(
    ('task', 'arguments', 'message'),
    [
        ('depth', dict(loss='l3'), "loss='l3'"),
        ('pose', dict(loss='l3'), "loss='l3'"),
        ('semseg', dict(class_weight=[1.0]), '1 class weights for 5'),
        ('semseg', dict(num_classes=256), 'num_classes=256'),
    ],
)
def test_impossible_settings_are_named(task, arguments, message):
    with pytest.raises(ValueError, match=message):
        build_head(task, **arguments)
