"""Conflict between tasks against one autograd.grad per task and forward pass, and its figures."""

import math

import pytest
import torch
from torch import Tensor, nn

from mmrepmtl.analysis.conflict import batch_conflict, conflict, cosines
from mmrepmtl.analysis.conflict_figure import conflict_figure, course_figure
from tests.analysis.harness import TASKS, batch, toy
from tests.models.toy import build_model, make_images, make_sample


def slow_gradients(model: nn.Module, images, samples, task: str) -> tuple[float, Tensor, Tensor]:
    """Loss, its gradient by Z (B, C, H, W) and by the encoder, of one task, in a forward pass of its own."""
    z = model.encoder(model.data_preprocessor(dict(inputs=images, data_samples=samples), True)['inputs'])
    z.retain_grad()
    (numerator, count) = next(iter(model.heads[task].loss_terms(model.heads[task](z, (16, 24)), samples).values()))
    loss = numerator / count
    for p in model.parameters():
        p.grad = None
    loss.backward()
    return loss.item(), z.grad, torch.cat([p.grad.flatten() for p in model.encoder.parameters()])


def cosine(one: Tensor, other: Tensor) -> float:
    return float((one * other).sum() / (one.norm() * other.norm()))


def batches(count=2):
    images, samples = batch()
    return [(images[i::count], samples[i::count]) for i in range(count)]


def test_conflict_equals_gradients_taken_task_by_task():
    model, parts = toy().eval(), batches()
    found = conflict(model, parts, 'encoder')
    slow = [{task: slow_gradients(model, *part, task) for task in TASKS} for part in parts]
    assert found.tasks == TASKS and (found.batches, found.samples) == (2, 4)
    for i, one in enumerate(TASKS):
        assert float(found.losses_T[i]) == pytest.approx(sum(s[one][0] for s in slow) / 2)
        assert float(found.z_norm_T[i]) == pytest.approx(sum(float(s[one][1].norm()) for s in slow) / 2)
        assert float(found.parameters_norm_T[i]) == pytest.approx(sum(float(s[one][2].norm()) for s in slow) / 2)
        for j, other in enumerate(TASKS):
            at_z = [cosine(s[one][1], s[other][1]) for s in slow]
            at_samples = [cosine(s[one][1][b], s[other][1][b]) for s in slow for b in range(2)]
            at_parameters = [cosine(s[one][2], s[other][2]) for s in slow]
            assert float(found.z_TT[i, j]) == pytest.approx(sum(at_z) / 2)
            assert float(found.samples_TT[i, j]) == pytest.approx(sum(at_samples) / 4)
            assert float(found.negative_TT[i, j]) == pytest.approx(sum(c < 0 for c in at_samples) / 4)
            assert float(found.parameters_TT[i, j]) == pytest.approx(sum(at_parameters) / 2)


def test_levels_of_z_count_together():
    class Levels(nn.Module):
        channels = [4, 5]

        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 3, 4, 1), nn.Conv2d(4, 5, 1)

        def forward(self, images):
            first = self.one(images).tanh()
            return first, self.two(first)

    model = toy(encoder=Levels()).eval()
    images, samples = batch()
    found = batch_conflict(model, images, samples, 'encoder')
    z = [level.detach().requires_grad_() for level in model.encoder(torch.stack(images))]
    rows = []
    for task in TASKS:
        ((numerator, count),) = model.heads[task].loss_terms(model.heads[task](tuple(z), (16, 24)), samples).values()
        grads = torch.autograd.grad(numerator / count, z, allow_unused=True)
        rows.append(
            torch.cat([(torch.zeros_like(v) if g is None else g).flatten() for g, v in zip(grads, z, strict=True)])
        )
    stacked = torch.stack(rows)
    assert torch.allclose(found.at_samples_BTT.sum(0), stacked @ stacked.T, rtol=1e-9, atol=1e-15)


def test_a_sample_without_a_target_has_no_cosine_and_counts_in_no_mean():
    model, (images, samples) = toy(), batch()
    samples = [make_sample(0, missing=('depth',), dtype=torch.float64), *samples[1:]]
    found = batch_conflict(model, images, samples, 'encoder')
    own = cosines(found.at_samples_BTT)
    assert math.isnan(own[0, 0, 1]) and not own[1:].isnan().any() and not math.isnan(own[0, 0, 2])
    mean = conflict(model, [(images, samples)], 'encoder')
    negative = [int((own[1:, 1, other] < 0).sum()) for other in (0, 2)]
    assert max(negative) > 0  # else a wrong number of samples would not show
    for other, count in zip((0, 2), negative, strict=True):
        assert float(mean.samples_TT[1, other]) == pytest.approx(float(own[1:, 1, other].mean()))
        assert float(mean.negative_TT[1, other]) == pytest.approx(count / 3)


def test_tasks_with_samples_of_their_own_are_compared_at_the_parameters():
    model = toy(encoder_forward='per_task').eval()
    images = list(make_images(range(6), dtype=torch.float64))
    samples = [
        make_sample(i, missing=[t for j, t in enumerate(TASKS) if i % 3 != j], dtype=torch.float64) for i in range(6)
    ]
    found = conflict(model, [(images, samples)], 'encoder')
    assert found.z_TT is found.samples_TT is found.z_norm_T is None and found.samples == 0
    rows = {t: slow_gradients(model, images[j::3], samples[j::3], t)[2] for j, t in enumerate(TASKS)}
    for i, one in enumerate(TASKS):
        for j, other in enumerate(TASKS):
            assert float(found.parameters_TT[i, j]) == pytest.approx(cosine(rows[one], rows[other]))


def test_gradients_too_small_for_their_squares_have_cosines():
    model, (images, samples) = toy().float(), batch()
    images = [image.float() for image in images]
    samples = [make_sample(i) for i in range(len(samples))]
    expected = conflict(model, [(images, samples)], 'encoder')
    for head in model.heads.values():
        head.loss_weight = 1e-28
    found = conflict(model, [(images, samples)], 'encoder')
    assert torch.allclose(found.parameters_TT, expected.parameters_TT, atol=1e-4)
    assert torch.allclose(found.z_TT, expected.z_TT, atol=1e-4)
    assert float(found.z_norm_T[0] / expected.z_norm_T[0]) == pytest.approx(1e-28, rel=1e-3)


class Normalised(nn.Module):
    channels = [6]

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 3, 4, 1), nn.BatchNorm2d(6), nn.Tanh())

    def forward(self, images):
        return self.layers(images)


def test_training_mode_sees_the_batch_and_leaves_the_model_as_it_was():
    model, (images, samples) = toy(encoder=Normalised()).eval(), batch()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.random.get_rng_state()
    evaluated = batch_conflict(model, images, samples, 'encoder')
    found = batch_conflict(model, images, samples, 'encoder', training=True)
    assert not model.training and torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    slow = [slow_gradients(model.train(), images, samples, task)[2] for task in TASKS]
    assert float(cosines(found.at_parameters_TT)[0, 1]) == pytest.approx(cosine(slow[0], slow[1]))
    assert not torch.allclose(found.at_parameters_TT, evaluated.at_parameters_TT, rtol=1e-3)


def test_what_cannot_be_compared_is_refused():
    images, samples = batch()
    with pytest.raises(ValueError, match="the task 'depth' only"):
        conflict(build_model(('depth',)).double(), [(images, samples)], 'encoder')
    frozen = toy()
    frozen.encoder.requires_grad_(False)
    with pytest.raises(ValueError, match="before the output of 'encoder'; it is frozen"):
        conflict(frozen, [(images, samples)], 'encoder')
    with pytest.raises(ValueError, match='there is no batch'):
        conflict(toy(), [], 'encoder')


def test_the_figure_shows_the_matrices_and_norms():
    found = conflict(toy(), batches(), 'encoder')
    figure = conflict_figure({'rep-mtl': found, 'ew': found}, 'a note')
    assert len(figure.axes) == 8
    z, samples, parameters, norms = figure.axes[:4]
    for axes, expected in ((z, found.z_TT), (samples, found.samples_TT), (parameters, found.parameters_TT)):
        assert torch.allclose(torch.tensor(axes.images[0].get_array().data), expected)
        assert axes.texts[1].get_text() == f'{float(expected[0, 1]) + 0.0:.2f}'
    heights = torch.tensor([bar.get_height() for bar in norms.patches]).double()
    expected = torch.cat([n / n.max() for n in (found.z_norm_T, found.parameters_norm_T)])
    assert torch.allclose(heights, expected)


def test_the_course_shows_pairs_and_tasks_over_epochs():
    found = conflict(toy(), batches(), 'encoder')
    later = found._replace(z_TT=found.z_TT * 0.5)
    figure = course_figure({'ew': [(1, found), (4, later)]}, 'epoch')
    upper = figure.axes[0]
    lines = {line.get_label(): line for line in upper.get_lines() if '/' in line.get_label()}
    assert list(lines) == ['semseg / depth', 'semseg / normal', 'depth / normal']
    first = float(found.z_TT[0, 1])
    assert lines['semseg / depth'].get_xdata().tolist() == [1, 4]
    assert lines['semseg / depth'].get_ydata().tolist() == pytest.approx([first, first / 2])
