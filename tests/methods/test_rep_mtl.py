"""The RepMTL regulariser on networks, in one process."""

import math
import warnings

import pytest
import torch
from torch import nn

from mmrepmtl.methods.regularizer import Regularizer, RegularizerContext
from mmrepmtl.methods.rep_mtl import RepMTL, identity_views
from tests.methods.rep_mtl_reference import (
    TwoLayerNet,
    batch,
    gradients,
    literal_csa,
    literal_penalty,
    literal_saliency,
    literal_tsr,
    total,
)

TASKS = ('a', 'b', 'c')


@pytest.fixture
def net():
    return TwoLayerNet().double()


def close(actual, expected, tolerance=1e-10):
    """Dicts of tensors, relative to the largest element of each."""
    assert actual.keys() == expected.keys()
    for name in actual:
        size = max(expected[name].abs().max().item(), 1e-30)
        torch.testing.assert_close(actual[name], expected[name], rtol=tolerance, atol=tolerance * size, msg=name)


@pytest.mark.parametrize('transform', ['log', None])
@pytest.mark.parametrize('weights', [(0.9, 0.9), (0.5, 0), (0, 0.7)])
def test_all_parameters_get_the_gradient_of_the_literal_formula(net, transform, weights):
    z, losses = net.losses(*batch())
    (sum(losses.values()) + literal_penalty(losses, z, transform == 'log', weights, 0.5)).backward()
    expected = gradients(net)
    net.zero_grad()
    z, losses = net.losses(*batch())
    terms = RepMTL(*weights, temperature=0.5, saliency_transform=transform)(losses, z)
    (sum(losses.values()) + total(terms)).backward()
    close(gradients(net), expected)


@pytest.mark.parametrize('levels', [1, 2])
def test_through_the_representation_only(net, levels):
    z, losses = net.losses(*batch())
    (expected_at_z,) = torch.autograd.grad(literal_penalty(losses, z), z)
    net.zero_grad()
    z, losses = net.losses(*batch())
    terms = RepMTL(through='representation')(losses, [z] * levels if levels > 1 else z)
    torch.testing.assert_close(total(terms), literal_penalty(losses, z), rtol=1e-10, atol=0)
    (at_z,) = torch.autograd.grad(total(terms), z, retain_graph=True)
    torch.testing.assert_close(at_z, expected_at_z, rtol=1e-9, atol=1e-12)
    total(terms).backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in net.heads.parameters())
    assert net.encoder[0].weight.grad.any()


def test_terms_carry_weight_warmup_and_interval(net):
    images = batch()

    def step(regularizer, **arguments):
        z, losses = net.losses(*images)
        return {name: term.item() for name, term in regularizer(losses, z, RegularizerContext(**arguments)).items()}

    plain = step(RepMTL(lambda_tsr=0.9, lambda_csa=0.4))
    regularizer = RepMTL(lambda_tsr=1.8, lambda_csa=0.8, warmup_iters=4)
    for factor in (0, 0.25, 0.5, 0.75, 1, 1):
        assert step(regularizer, advance=False) == pytest.approx({name: 2 * factor * plain[name] for name in plain})
        assert step(regularizer) == pytest.approx({name: 2 * factor * plain[name] for name in plain})
    regularizer = RepMTL(lambda_tsr=0.9, lambda_csa=0.4, interval=3)
    for index in range(7):
        expected = plain if index % 3 == 0 else dict.fromkeys(plain, 0)
        for advance in (False, True):
            assert step(regularizer, advance=advance) == pytest.approx({name: 3 * expected[name] for name in plain})
    assert regularizer.num_steps == 7
    resumed = RepMTL(lambda_tsr=0.9, lambda_csa=0.4, interval=3)
    resumed.load_state_dict(regularizer.state_dict())
    assert resumed.num_steps == 7
    assert [bool(step(resumed)['loss_tsr']) for _ in range(3)] == [False, False, True]


def test_steps_without_penalty_do_no_saliency_work(net, monkeypatch):
    z, losses = net.losses(*batch())
    regularizer = RepMTL(interval=2)
    regularizer(losses, z)
    monkeypatch.setattr(torch.autograd, 'grad', None)
    terms = regularizer(losses, z)
    assert terms == dict(loss_tsr=0, loss_csa=0) and not any(term.requires_grad for term in terms.values())
    assert RepMTL(0, 0)(losses, z) == terms


def test_scale_of_task_losses_and_of_the_batch_of_float32(net):
    net.float()
    images, targets = batch(dtype=torch.float32)
    z, losses = net.losses(images, targets)
    terms = RepMTL()(losses, z)
    scaled = {task: loss * 10.0**i for i, (task, loss) in enumerate(losses.items())}
    torch.testing.assert_close(RepMTL()(scaled, z), terms)
    torch.testing.assert_close(
        RepMTL(saliency_transform=None)({task: loss * 1e-8 for task, loss in losses.items()}, z),
        RepMTL(saliency_transform=None)(losses, z),
        rtol=1e-4,
        atol=0,
    )
    torch.testing.assert_close(RepMTL()(losses, z, RegularizerContext(scale=2.0**16)), terms)
    permuted = {task: losses[task] for task in 'cab'}
    torch.testing.assert_close(RepMTL()(permuted, z), terms)


@pytest.mark.parametrize('through', ['all', 'representation'])
def test_bfloat16_autocast(net, through):
    net.float()
    regularizer = RepMTL(through=through)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        z, losses = net.losses(*batch(dtype=torch.float32))
        assert z.dtype == torch.bfloat16
        terms = regularizer(losses, z)
    assert terms['loss_csa'].dtype == torch.float32
    exact_z, exact_losses = net.losses(*batch(dtype=torch.float32))
    torch.testing.assert_close(terms, RepMTL()(exact_losses, exact_z), rtol=0.05, atol=0.02)
    (total(terms) + sum(losses.values())).backward()
    found = gradients(net.encoder)
    net.zero_grad()
    (total(RepMTL(through=through)(exact_losses, exact_z)) + sum(exact_losses.values())).backward()
    for name, expected in gradients(net.encoder).items():
        assert nn.functional.cosine_similarity(found[name].flatten(), expected.flatten(), dim=0) > 0.98, name


@pytest.mark.parametrize('through', ['all', 'representation'])
def test_float16_gradients_survive_through_the_loss_scale(through):
    generator = torch.Generator().manual_seed(0)
    inputs, weight = torch.randn(64, 4, generator=generator), torch.randn(8, 4, generator=generator)
    heads = [torch.randn(8, 8, generator=generator) for _ in range(3)]

    def encoder_gradient(dtype, scale):
        parameter = weight.to(dtype, copy=True).requires_grad_()
        z = inputs.to(dtype) @ parameter.T
        losses = {
            task: (z @ head.to(dtype)).tanh().float().square().mean() * 1e-2
            for task, head in zip(TASKS, heads, strict=True)
        }
        terms = RepMTL(through=through, saliency_floor=0.3)(losses, z, RegularizerContext(scale=scale))
        (total(terms) * scale).backward()
        return parameter.grad.float().flatten() / scale

    expected = encoder_gradient(torch.float32, 1.0)
    for scale in (2.0**8, 2.0**12):
        found = encoder_gradient(torch.float16, scale)
        assert nn.functional.cosine_similarity(found, expected, dim=0) > 0.99
        assert found.norm() == pytest.approx(expected.norm().item(), rel=0.05)


# Diagnostics


@pytest.mark.parametrize('through', ['all', 'representation'])
@pytest.mark.parametrize('scale, backward_scale', [(1.0, 1.0), (512.0, 0.25)])
def test_diagnostics(net, through, scale, backward_scale):
    z, losses = net.losses(*batch())
    regularizer = RepMTL(0.9, 0.5, through=through)
    assert regularizer.diagnostics == {}
    weights = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    slopes = weights / torch.stack(list(losses.values())).detach()  # the objective is made of log losses
    terms = regularizer(
        losses,
        z,
        RegularizerContext(scale=scale, backward_scale=backward_scale, task_weights=slopes, measure_gradient=True),
    )
    assert ('grad_ratio' in regularizer.diagnostics) == (through == 'representation')
    logs = {task: loss.log() for task, loss in losses.items()}
    objective = sum(weight * log for weight, log in zip(weights, logs.values(), strict=True))
    ((objective + total(terms)) * scale * backward_scale).backward(retain_graph=True)

    saliency = literal_saliency(losses, z)
    (penalty_at_z,) = torch.autograd.grad(
        0.9 * literal_tsr(saliency) + 0.5 * literal_csa(saliency), z, retain_graph=True
    )
    (tasks_at_z,) = torch.autograd.grad(objective, z)
    mean = saliency.detach().mean(2).abs()
    share = (mean / mean.sum(0)).mean((1, 2, 3))
    maps = saliency.detach().flatten(3)
    anchors = [maps[:, b].mean(-1).T @ maps[:, b].mean(-1) for b in range(4)]
    positive = [
        torch.cosine_similarity(anchors[b].flatten(), (maps[t, b] @ maps[t, b].T).flatten(), dim=0)
        for t in range(3)
        for b in range(4)
    ]
    negative = [
        torch.cosine_similarity(anchors[b].flatten(), anchors[k].flatten(), dim=0)
        for b in range(4)
        for k in range(4)
        if k != b
    ]
    expected = dict(
        tsr=literal_tsr(saliency).item(),
        csa=literal_csa(saliency).item(),
        entropy=literal_tsr(saliency).item() / math.log(3),
        positive=sum(positive).item() / 12,
        negative=sum(negative).item() / 12,
        grad_ratio=(penalty_at_z.norm() / tasks_at_z.norm()).item(),
        **{f'share/{task}': share[index].item() for index, task in enumerate(TASKS)},
    )
    assert all(type(value) is float for value in regularizer.diagnostics.values())
    assert regularizer.diagnostics == pytest.approx(expected, rel=1e-8)


def test_gradient_ratio_over_several_levels(net):
    images, targets = batch()
    encoder = nn.Conv2d(3, 5, 3, padding=1).double()
    levels = identity_views([encoder(images), encoder(images).tanh()])
    losses = {task: (levels[0].tanh() * levels[1]).pow(power).mean() + 1 for power, task in enumerate(TASKS, 2)}
    regularizer = RepMTL()
    regularizer.measure_gradient = True
    terms = regularizer(losses, levels)
    (total(terms) + sum(loss.log() for loss in losses.values())).backward(retain_graph=True)
    tasks = torch.autograd.grad(sum(loss.log() for loss in losses.values()), levels, retain_graph=True)
    penalty = torch.autograd.grad(total(terms), levels)
    norm = [math.sqrt(sum(part.square().sum().item() for part in parts)) for parts in (penalty, tasks)]
    assert regularizer.diagnostics['grad_ratio'] == pytest.approx(norm[0] / norm[1], rel=1e-8)


def test_collapse_is_warned_of_once(net):
    z = torch.randn(4, 3, 5, requires_grad=True).abs() + 1

    def losses(weakness):
        return dict(a=z.square().mean(), b=z.square().mean() * weakness)

    regularizer = RepMTL(saliency_transform=None, layout='NLC')
    with pytest.warns(UserWarning, match='collapsed'):
        regularizer(losses(1e-3), z)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        regularizer(losses(1e-3), z)
        regularizer(losses(1), z)
    with pytest.warns(UserWarning, match='collapsed'):
        regularizer(losses(1e-3), z)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        RepMTL(saliency_transform=None, layout='NLC')(dict(a=losses(1)['a']), z)


def test_small_batches_are_warned_of_once(net):
    for samples, message in ((1, 'no negatives'), (3, '3 samples per process')):
        regularizer = RepMTL()
        z, losses = net.losses(*batch(samples))
        with pytest.warns(UserWarning, match=message):
            terms = regularizer(losses, z)
        assert (terms['loss_csa'] == 0) == (samples == 1)
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            regularizer(losses, z)
            RepMTL(lambda_csa=0)(losses, z)
            RepMTL()(*reversed(net.losses(*batch(4))))


def test_a_task_with_a_small_share_is_warned_of_once_with_the_remedy():
    z = (torch.randn(4, 3, 5).abs() + 1).requires_grad_()

    def call(regularizer, factor=0.01):
        losses = dict(a=z.square().mean(), b=z.square().mean(), age=factor * z.square().mean())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            regularizer(losses, z)
        return [str(warning.message) for warning in caught]

    regularizer = RepMTL(saliency_transform=None, layout='NLC')
    for _ in range(19):
        assert call(regularizer) == []
    (message,) = call(regularizer)
    assert "task 'age' owns 0.5%" in message and 'lambda_tsr=0, through=' in message and 'standardised' in message
    assert call(regularizer) == []
    for settings in (dict(lambda_tsr=0), dict(saliency_transform='log')):
        quiet = RepMTL(layout='NLC', **(dict(saliency_transform=None) | settings))
        assert [call(quiet) for _ in range(25)] == [[]] * 25
    recovering = RepMTL(saliency_transform=None, layout='NLC')
    assert [call(recovering, factor) for factor in [0.01] * 10 + [1] * 30] == [[]] * 40
    told = []
    mine = RepMTL(saliency_transform=None, layout='NLC', through='representation', target_ratio=0.05)
    for _ in range(20):
        losses = dict(a=z.square().mean(), b=z.square().mean(), age=0.01 * z.square().mean())
        mine(losses, z, RegularizerContext(warn=told.append))
    assert len(told) == 1 and 'Use lambda_tsr=0, or bring' in told[0]


def test_many_tasks_may_have_small_shares():
    z = (torch.randn(4, 3, 5).abs() + 1).requires_grad_()
    regularizer, told = RepMTL(saliency_transform=None, layout='NLC'), []
    for _ in range(25):
        losses = {str(task): z.square().mean() for task in range(40)}
        regularizer(losses, z, RegularizerContext(warn=told.append))
    assert told == []


def test_maps_without_two_readers_are_warned_of_once_and_not_as_a_collapse(net):
    levels = identity_views([torch.randn(4, 3, 5, 5, requires_grad=True) for _ in range(3)])

    def losses(*read):
        return {name: levels[index].square().mean() + 1 for name, index in zip('ab', read, strict=True)}

    regularizer = RepMTL()
    with pytest.warns(UserWarning) as caught:
        for _ in range(25):
            regularizer(losses(0, 2), levels)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "no map of the shared representation is read by two tasks (level 0 is read by ['a']" in message
    assert "level 1 is read by nobody; level 2 is read by ['b']" in message and 'lambda_tsr=0' in message
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for _ in range(3):
            RepMTL()(losses(1, 1), levels)
            RepMTL(lambda_tsr=0)(losses(0, 2), levels)


# Use


def test_plain_loop_with_a_target_ratio(net):
    """The scale of a step comes from the steps before; gradients that are accumulated are one step."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    regularizer = RepMTL(target_ratio=0.1)
    scales = []
    for step in range(6):
        z, losses = net.losses(*batch())
        terms = regularizer(losses, z)
        optimizer.zero_grad()
        (total(terms) + sum(loss.log() for loss in losses.values())).backward()
        optimizer.step()
        scales.append(regularizer.diagnostics['scale'])
        assert regularizer.diagnostics['grad_ratio'] == pytest.approx(0.1, rel=0.2)
        assert regularizer.strength.count == step
    assert scales[0] == pytest.approx(scales[1], rel=1e-6)
    state = RepMTL(target_ratio=0.1)
    state.load_state_dict(regularizer.state_dict())
    assert state.strength.known and torch.equal(state.strength.scale(), regularizer.strength.scale())
    assert list(RepMTL().state_dict()) == ['num_steps']


def test_plain_pytorch_loop():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU())
    heads = nn.ModuleDict(
        dict(
            semseg=nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)),
            depth=nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 1, 1)),
        )
    )
    rep_mtl = RepMTL(lambda_tsr=0.1, lambda_csa=0.1)
    assert isinstance(rep_mtl, Regularizer) and rep_mtl.name == 'rep_mtl'
    optimizer = torch.optim.Adam([*encoder.parameters(), *heads.parameters()], lr=1e-2)
    images, labels, depths = torch.randn(8, 3, 16, 16), torch.randint(4, (8, 8, 8)), torch.rand(8, 1, 8, 8)
    history = []
    for _ in range(20):
        z = encoder(images)
        losses = dict(
            semseg=nn.functional.cross_entropy(heads['semseg'](z), labels),
            depth=nn.functional.l1_loss(heads['depth'](z), depths),
        )
        penalty = rep_mtl(losses, z)
        objective = sum(loss.log() for loss in losses.values()) + penalty['loss_tsr'] + penalty['loss_csa']
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
        history.append(objective.item())
    assert history[-1] < history[0] and rep_mtl.diagnostics['entropy'] > 0
