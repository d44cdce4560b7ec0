"""Tasks with samples of their own: one encoder call per task, or one on all of them."""

import copy

import pytest
import torch
from torch import nn

from mmrepmtl.registry import MODELS
from tests.models.harness import TASKS, NormEncoder, build, make_batch

from .toy import PlainEncoder, head_configs, make_images, make_sample


def rows_of(owners, task):
    return [row for row, tasks in enumerate(owners) if task == tasks or isinstance(tasks, tuple) and task in tasks]


def labels(samples, rows, task):
    return torch.stack([samples[row].targets[task] for row in rows])


def gradients(model, losses):
    model.zero_grad()
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def reference(model, images, samples, owners, mode):
    """The slow way, written out: losses by task and what the model's state is afterwards."""
    model = copy.deepcopy(model)
    losses = {}
    if mode == 'per_task':
        for task in TASKS:
            rows = rows_of(owners, task)
            output = model.heads[task](model.encoder(images[rows]), (8, 8))
            losses[f'{task}.loss_ce'] = nn.functional.cross_entropy(output, labels(samples, rows, task))
    else:
        order = [row for task in TASKS for row in rows_of(owners, task)]
        features, start = model.encoder(images[order]), 0
        for task in TASKS:
            rows = rows_of(owners, task)
            output = model.heads[task](features[start : start + len(rows)], (8, 8))
            losses[f'{task}.loss_ce'] = nn.functional.cross_entropy(output, labels(samples, rows, task))
            start += len(rows)
    return losses, gradients(model, losses), dict(model.named_buffers())


ORDERED = ('a', 'a', 'a', 'b', 'b', 'c', 'c', 'c', 'c')
MIXED = ('c', 'a', 'b', (), 'c', 'a', 'b', 'c', 'a', 'c')


@pytest.mark.parametrize(
    'owners', [ORDERED, MIXED, ('a', 'a', ('a', 'b'), 'b', 'c', 'c')], ids=['ordered', 'mixed', 'two']
)
@pytest.mark.parametrize('mode', ['per_task', 'concat'])
def test_losses_gradients_and_statistics_are_those_of_the_forwards_written_out(mode, owners):
    model = build(mode)
    images, samples = make_batch(owners)
    expected_losses, expected_gradients, expected_buffers = reference(model, images, samples, owners, mode)
    losses = model(images, samples, mode='loss')
    assert {key for key in losses if 'loss' in key} == set(expected_losses)
    for key, value in expected_losses.items():
        torch.testing.assert_close(losses[key], value, rtol=1e-12, atol=0)
        assert losses[key.replace('loss_ce', 'labelled')] == 1
    for name, gradient in gradients(model, losses).items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-9, atol=1e-12)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, expected_buffers[name], rtol=1e-12, atol=0)
    calls = dict(per_task=len(TASKS), concat=1)[mode]
    assert model.encoder.layers[1].num_batches_tracked == calls


def test_the_order_of_the_samples_makes_no_difference():
    for mode in ('per_task', 'concat'):
        ordered, mixed = build(mode), build(mode)
        images, samples = make_batch(MIXED)
        order = [row for task in TASKS for row in rows_of(MIXED, task)]
        one = ordered(images[order], [samples[row] for row in order], mode='loss')
        other = mixed(images, samples, mode='loss')
        for key in one:
            torch.testing.assert_close(one[key], other[key], rtol=1e-12, atol=0)


def test_batch_norm_makes_the_difference_between_the_modes():
    images, samples = make_batch(ORDERED)
    losses = {mode: build(mode)(images, samples, mode='loss')['a.loss_ce'].item() for mode in ('per_task', 'concat')}
    assert abs(losses['per_task'] - losses['concat']) > 1e-4


def test_without_batch_norm_all_modes_agree():
    images, samples = make_batch(MIXED)
    results = []
    for mode in ('shared', 'per_task', 'concat'):
        model = build(mode, PlainEncoder)
        losses = model(images, samples, mode='loss')
        results.append((losses, gradients(model, losses)))
    for losses, found in results[1:]:
        for key, value in results[0][0].items():
            torch.testing.assert_close(losses[key], value, rtol=1e-12, atol=0)
        for name, gradient in results[0][1].items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-14)


class Recorder:
    """Remembers the shared representation of each call, and what each head reads."""

    def __init__(self, model):
        self.shared, self.read = [], {}
        (model.encoder if model.neck is None else model.neck).register_forward_hook(
            lambda module, args, output: self.shared.append(output)
        )
        for task, head in model.heads.items():
            head.register_forward_pre_hook(lambda module, args, task=task: self.read.update({task: args[0]}))


@pytest.mark.parametrize('owners', [ORDERED, MIXED])
def test_concat_tells_the_rows_of_each_task_before_its_head_runs(owners):
    model = build('concat', neck=dict(type='GlobalPoolNeck', out_channels=5))
    images, samples = make_batch(owners)
    recorder, seen = Recorder(model), []
    model.heads['a'].register_forward_pre_hook(lambda *call: seen.append(dict(model.task_slices)))
    assert model.task_slices is None
    losses = model(images, samples, mode='loss')
    counts = [len(rows_of(owners, task)) for task in TASKS]
    expected = dict(a=slice(0, counts[0]), b=slice(counts[0], sum(counts[:2])), c=slice(sum(counts[:2]), sum(counts)))
    assert seen == [expected] and model.task_slices == expected and list(model.task_slices) == list(TASKS)
    (shared,) = recorder.shared
    assert shared.shape == (sum(counts), 5)
    for task, rows in expected.items():
        assert torch.equal(recorder.read[task], shared[rows])
        (gradient,) = torch.autograd.grad(losses[f'{task}.loss_ce'], shared, retain_graph=True)
        outside = torch.ones(len(shared), dtype=torch.bool)
        outside[rows] = False
        assert not gradient[outside].any() and gradient[rows].any(1).all()


def test_per_task_calls_the_shared_module_once_for_each_task_in_their_order():
    model = build('per_task')
    images, samples = make_batch(MIXED)
    recorder = Recorder(model)
    losses = model(images, samples, mode='loss')
    assert model.task_slices is None
    assert [len(output) for output in recorder.shared] == [len(rows_of(MIXED, task)) for task in TASKS]
    for task, output in zip(TASKS, recorder.shared, strict=True):
        assert recorder.read[task] is output
        assert torch.autograd.grad(losses[f'{task}.loss_ce'], output, retain_graph=True)[0].any()


@pytest.mark.parametrize('mode', ['per_task', 'concat'])
def test_several_levels(mode):
    model = build(mode, lambda: NormEncoder(levels=2))
    recorder = Recorder(model)
    images, samples = make_batch(ORDERED)
    model(images, samples, mode='loss')
    for task in TASKS:
        levels = recorder.read[task]
        assert isinstance(levels, tuple) and [len(level) for level in levels] == [len(rows_of(ORDERED, task))] * 2
        assert torch.equal(levels[1], levels[0].square())


@pytest.mark.parametrize('mode', ['per_task', 'concat'])
def test_dense_tasks_have_the_size_of_their_images(mode):
    torch.manual_seed(0)
    heads = head_configs(['semseg', 'depth'])
    model = MODELS.build(dict(type='MultiTaskModel', encoder=PlainEncoder(), heads=heads, encoder_forward=mode))
    other = MODELS.build(dict(type='MultiTaskModel', encoder=PlainEncoder(), heads=heads))
    other.load_state_dict(model.state_dict())
    rest = ['normal', 'kind', 'pose']
    samples = [make_sample(i, missing=[*rest, 'depth']) for i in (0, 1)]
    samples += [make_sample(i, missing=[*rest, 'semseg']) for i in (2, 3)]
    own, shared = (m(make_images(range(4)), samples, mode='loss') for m in (model, other))
    for key in shared:
        torch.testing.assert_close(own[key], shared[key])


@pytest.mark.parametrize('mode', ['per_task', 'concat'])
def test_a_batch_without_a_task_is_refused(mode):
    images, samples = make_batch(('a', 'c', 'c'))
    message = f"encoder_forward='{mode}' needs samples of every task .* this one of 3 has none with the target of b;"
    with pytest.raises(ValueError, match=message + '.*DomainBatchSampler'):
        build(mode)(images, samples, mode='loss')
    # A shared representation has no need of it.
    assert build('shared')(images, samples, mode='loss')['b.labelled'] == 0


@pytest.mark.parametrize('mode', ['per_task', 'concat'])
def test_all_tasks_are_predicted_for_all_samples_in_one_forward(mode):
    model = build(mode)
    images, samples = make_batch(('a', 'b', 'b'))
    model(*make_batch(ORDERED), mode='loss')
    model.eval()
    recorder = Recorder(model)
    with torch.no_grad():
        results = model(images, samples, mode='predict')
    assert [len(output) for output in recorder.shared] == [3] and model.task_slices is None
    shared = build('shared').eval()
    shared.load_state_dict(model.state_dict())
    for result, expected in zip(results, shared(images, samples, mode='predict'), strict=True):
        assert set(result.predictions) == set(TASKS) and set(result.targets) <= set(TASKS)
        for task in TASKS:
            assert torch.equal(result.predictions[task], expected.predictions[task])


def test_unknown_modes_and_the_name_of_the_average_are_refused():
    with pytest.raises(
        ValueError, match="encoder_forward='each' is unknown; use one of 'shared', 'per_task', 'concat'"
    ):
        build('each')
    with pytest.raises(ValueError, match="task name 'avg' cannot be used: it stands for the average"):
        heads = dict(avg=dict(type='ClassificationHead', num_classes=2))
        MODELS.build(dict(type='MultiTaskModel', encoder=PlainEncoder(), heads=heads))


def test_the_neck_of_the_public_office_code():
    torch.manual_seed(0)
    neck = MODELS.build(dict(type='GlobalPoolNeck', in_channels=512, init_std=0.005))
    assert neck.layers[0].weight.std().item() == pytest.approx(0.005, rel=0.02)
    assert abs(neck.layers[0].weight.mean().item()) < 1e-4
