"""Task saliency on networks, and the heads, losses and representations that it can be taken of, in one process."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmrepmtl.methods.rep_mtl import RegularizerContext, RepMTL, identity_views, task_saliency
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


def test_task_saliency_is_the_gradient_in_the_graph(net):
    z, losses = net.losses(*batch())
    saliency = task_saliency(losses, z)
    expected = literal_saliency(losses, z, log=False)
    assert saliency.shape == (3, 4, 5, 4, 5) and saliency.requires_grad
    torch.testing.assert_close(saliency, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(task_saliency(list(losses.values()), z, scale=1024.0), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(task_saliency(losses, z, scale=torch.tensor(8.0)), expected, rtol=1e-12, atol=0)


def test_task_saliency_of_float16_maps_needs_the_scale():
    z = torch.randn(2, 3, 4, 4, dtype=torch.float16, requires_grad=True)
    losses = {'a': (z.float().square() * 1e-9).sum()}
    saliency = task_saliency(losses, z, scale=2.0**20)
    assert saliency.dtype == torch.float32
    torch.testing.assert_close(saliency[0], 2e-9 * z.detach().float(), rtol=1e-2, atol=1e-13)
    assert not task_saliency(losses, z).any()


def test_layouts_and_prefix_tokens():
    nchw = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    weights = torch.randn(3, *nchw.shape, dtype=torch.float64)
    expected = 2 * nchw * weights

    def saliency(z, to_nchw, **arguments):
        z.requires_grad_()
        return task_saliency([(to_nchw(z).square() * weight).sum() for weight in weights], z, **arguments)

    found = saliency(nchw.movedim(1, -1).clone(), lambda z: z.movedim(-1, 1), layout='NHWC')
    torch.testing.assert_close(found, expected)
    tokens = torch.cat([torch.randn(2, 2, 5, dtype=torch.float64), nchw.flatten(2).mT], dim=1)
    torch.testing.assert_close(
        saliency(
            tokens,
            lambda z: z[:, 2:].mT.reshape(2, 5, 3, 4) * z[:, :1, :1, None] ** 0,
            layout='NLC',
            num_prefix_tokens=2,
        ),
        expected.flatten(3),
    )
    for layout, shape in (('NLC', (2, 5, 3, 4)), ('NCHW', (2, 6, 5)), ('NHWC', (2, 6, 5))):
        with pytest.raises(ValueError, match='expects'):
            z = torch.randn(shape, requires_grad=True)
            task_saliency([z.sum()], z, layout=layout)
    with pytest.raises(ValueError, match="needs layout='NLC'"):
        task_saliency([nchw.requires_grad_().sum()], nchw, num_prefix_tokens=1)


def test_vectors(net):
    z = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    losses = {task: (z @ torch.randn(5, 2, dtype=torch.float64)).tanh().square().sum() for task in TASKS}
    terms = RepMTL()(losses, z)
    torch.testing.assert_close(total(terms), literal_penalty(losses, z), rtol=1e-10, atol=0)


def test_levels_are_differentiated_apart_and_averaged(net):
    images, targets = batch()
    first = nn.Conv2d(3, 5, 3, padding=1).double()
    second = nn.Conv2d(5, 4, 3, stride=2).double()
    shallow = first(images).tanh()
    levels = identity_views([shallow, second(shallow)])
    losses = {
        'a': (levels[0] * levels[1].mean()).square().mean(),
        'b': levels[0].exp().mean(),
        'c': levels[1].exp().mean(),
    }
    saliencies = task_saliency(losses, levels)
    assert [saliency.shape for saliency in saliencies] == [(3, 4, 5, 4, 5), (3, 4, 4, 1, 2)]
    torch.testing.assert_close(saliencies[0][1], levels[0].exp() / levels[0].numel())
    assert not saliencies[0][2].any() and not saliencies[1][1].any()
    values = torch.stack(list(losses.values())).detach().reshape(3, 1, 1, 1, 1)
    weighted = [saliency / values for saliency in saliencies]
    terms = RepMTL(0.5, 0.7)(losses, levels)
    torch.testing.assert_close(terms['loss_tsr'], 0.5 * sum(map(literal_tsr, weighted)) / 2, rtol=1e-10, atol=0)
    torch.testing.assert_close(terms['loss_csa'], 0.7 * sum(map(literal_csa, weighted)) / 2, rtol=1e-10, atol=0)


def test_tasks_with_samples_of_their_own(net):
    representations, losses = {}, {}
    for seed, (task, samples) in enumerate(zip(TASKS, (4, 6, 5), strict=True)):
        images, targets = batch(samples, seed)
        representations[task] = net.encoder(images)
        losses[task] = (net.heads[task](representations[task]) - targets).square().mean()
    expected = torch.stack(
        [
            torch.autograd.grad(losses[task], representations[task], create_graph=True)[0][:4] / losses[task]
            for task in TASKS
        ]
    )
    regularizer = RepMTL(shared_samples=False)
    terms = regularizer(losses, representations)
    assert total(RepMTL()(losses, representations)) == total(terms)
    torch.testing.assert_close(terms['loss_tsr'], 0.9 * literal_tsr(expected), rtol=1e-10, atol=0)
    torch.testing.assert_close(terms['loss_csa'], 0.9 * literal_csa(expected), rtol=1e-10, atol=0)
    # One call of the encoder for all, with the rows of each.
    joint = net.encoder(torch.cat([batch(samples, seed)[0] for seed, samples in enumerate((4, 6, 5))]))
    slices = dict(a=slice(0, 4), b=slice(4, 10), c=slice(10, 15))
    losses = {
        task: (net.heads[task](joint[slices[task]]) - batch(samples, seed)[1]).square().mean()
        for seed, (task, samples) in enumerate(zip(TASKS, (4, 6, 5), strict=True))
    }
    torch.testing.assert_close(
        task_saliency(losses, joint, slices=slices),
        expected.detach() * torch.stack(list(losses.values())).reshape(3, 1, 1, 1, 1),
    )
    context = RegularizerContext(slices=slices)
    torch.testing.assert_close(total(regularizer(losses, joint, context)), total(terms), rtol=1e-10, atol=0)


def test_representations_that_do_not_fit():
    z = {task: torch.randn(2, 3, size, 4, requires_grad=True) for task, size in zip('ab', (4, 5), strict=True)}
    losses = {task: part.square().sum() for task, part in z.items()}
    with pytest.raises(ValueError, match='one size'):
        RepMTL(shared_samples=False)(losses, z)
    with pytest.raises(ValueError, match='shared_samples=False'):
        RepMTL(shared_samples=True)(losses, z)
    with pytest.raises(ValueError, match='slices'):
        RepMTL(shared_samples=False)(dict(a=losses['a']), z['a'])
    with pytest.raises(ValueError, match=r"\['b'\]"):
        RepMTL(shared_samples=False)(losses, dict(a=z['a']))


# Heads and losses that cannot be used


class OnceCube(torch.autograd.Function):
    """x^3 whose backward is declared final."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 3 * ctx.saved_tensors[0] ** 2 * gradient


class SilentCube(torch.autograd.Function):
    """x^3 whose backward drops the graph without saying so."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        return 3 * ctx.saved_tensors[0].detach() ** 2 * gradient.detach()


LINEAR = nn.Linear(4, 4)


def attention_head(z):
    tokens = LINEAR(z).reshape(2, 1, 3, 4)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)


def math_attention_head(z):
    tokens = LINEAR(z).reshape(2, 1, 3, 4)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)


BAD_HEADS = {
    'attention': (attention_head, 'SDPBackend.MATH'),
    'compiled': (torch.compile(lambda z: LINEAR(z).tanh(), backend='aot_eager'), 'leave the head out of torch.compile'),
    're-entrant': (lambda z: checkpoint(lambda x: LINEAR(x).tanh(), z, use_reentrant=True), 'use_reentrant=False'),
    'once': (OnceCube.apply, 'once_differentiable'),
    'once after a layer': (lambda z: OnceCube.apply(LINEAR(z)), 'once_differentiable'),
    'silent': (lambda z: SilentCube.apply(z).sum(), 'SilentCubeBackward'),
}
GOOD_HEADS = {
    'math attention': math_attention_head,
    'checkpoint': lambda z: checkpoint(lambda x: LINEAR(x).tanh(), z, use_reentrant=False),
    'linear': LINEAR,
    'identity': lambda z: z,
}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('through', ['all', 'representation'])
@pytest.mark.parametrize('name', BAD_HEADS)
def test_a_head_that_cannot_be_differentiated_twice(name, through):
    head, advice = BAD_HEADS[name]
    z = nn.Linear(4, 4)(torch.randn(6, 4))
    losses = dict(fine=z.exp().mean(), bad=head(z).square().mean() if name != 'silent' else head(z) + 1e4)
    with pytest.raises(ValueError, match="'bad'.*" + advice):
        RepMTL(through=through)(losses, z)


@pytest.mark.parametrize('through', ['all', 'representation'])
@pytest.mark.parametrize('loss', ['square', 'abs'])
@pytest.mark.parametrize('name', GOOD_HEADS)
def test_a_head_that_may_be_used(name, loss, through):
    encoder = nn.Linear(4, 4)
    z = encoder(torch.randn(6, 4))
    losses = dict(a=getattr(GOOD_HEADS[name](z), loss)().mean(), b=z.abs().mean())
    (sum(losses.values()) + total(RepMTL(through=through)(losses, z))).backward()
    assert encoder.weight.grad.isfinite().all()


def test_synchronised_batchnorm_in_a_head_is_refused():
    class SyncBatchNorm(torch.autograd.Function):
        """Stands for torch's, which exists on a GPU only; its node has the same name."""

        forward = staticmethod(lambda ctx, x: x * 2)
        backward = staticmethod(lambda ctx, gradient: gradient * 2)

    z = torch.randn(6, 4, requires_grad=True)
    with pytest.raises(ValueError, match="'norm'.*SyncBatchNorm"):
        RepMTL()(dict(norm=SyncBatchNorm.apply(z).square().mean()), z)


def test_a_loss_that_does_not_depend_on_the_representation(net):
    z, losses = net.losses(*batch())
    with pytest.raises(ValueError, match="task 'b' does not depend"):
        RepMTL()(losses | dict(b=net.encoder(batch()[0]).square().mean()), z)
    with pytest.raises(ValueError, match="task 'c' does not depend"):
        RepMTL()(losses | dict(c=torch.ones(())), z)
    with torch.no_grad(), pytest.raises(ValueError, match='no_grad'):
        RepMTL(shared_samples=True)(losses, z)
    with pytest.raises(ValueError, match="task 'a' must be a scalar"):
        RepMTL()(losses | dict(a=z), z)


def test_an_unlabelled_task_is_a_zero_saliency(net):
    z, losses = net.losses(*batch())
    unlabelled = losses | dict(b=losses['b'] * 0)
    terms = RepMTL(saliency_transform=None)(unlabelled, z)
    torch.testing.assert_close(total(terms), literal_penalty(unlabelled, z, log=False), rtol=1e-10, atol=0)
    (total(terms) + sum(unlabelled.values())).backward()
    assert all(gradient.isfinite().all() for gradient in gradients(net).values())


@pytest.mark.parametrize('value', [0.0, -0.5])
def test_log_needs_positive_losses(net, value):
    z, losses = net.losses(*batch())
    losses['b'] = losses['b'] - losses['b'].detach() + value
    with pytest.raises(ValueError, match="'b'"):
        RepMTL(shared_samples=True)(losses, z)
    RepMTL(saliency_transform=None)(losses, z)


@pytest.mark.parametrize(
    'arguments',
    [
        dict(lambda_tsr=-1),
        dict(temperature=0),
        dict(saliency_transform='sqrt'),
        dict(layout='CHW'),
        dict(through='heads'),
        dict(interval=0),
        dict(warmup_iters=-1),
        dict(saliency_floor=-0.1),
        dict(num_prefix_tokens=1),
    ],
)
def test_arguments_out_of_range(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        RepMTL(**arguments)
