"""A gradient lies in memory as its parameter does: the fused optimizers go through both by their place in it."""

import pytest
import torch
from torch import nn

from mmrepmtl.engine import MultiTaskOptimWrapper
from mmrepmtl.engine.gradients.writing import accumulate, average_gradients, in_layout_of, segment_in_layout_of
from tests.engine.harness import REP, run
from tests.engine.overlays import CASES, ready, settings_of
from tests.engine.toy import ToyModel, make_batch, make_model, max_difference


class TransposedLinear(nn.Module):
    """Its weight is the transpose of a contiguous one, its scale a leaf with dimensions of size 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter((0.3 * torch.randn(4, 4)).t())
        self.scale = nn.Parameter(torch.ones(4, 3).t()[:1].t())  # 4 x 1 with strides (1, 4)
        self.part = nn.Parameter(torch.zeros(4, 6)[:, ::3])  # leaves memory out

    def forward(self, z):
        mixed = torch.einsum('oc,bchw->bohw', self.weight, z)
        return mixed * self.scale[None, :, :, None] + self.part.sum(1)[None, :, None, None]


class Layouts(ToyModel):
    """A ConvNeXt-like encoder and heads in channels_last, with 1 x 1 and depthwise kernels and a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.Conv2d(8, 4, 1),
            nn.Tanh(),
            TransposedLinear(),
        )
        self.heads['b'] = nn.Sequential(
            nn.Conv2d(4, 4, 1), nn.Tanh(), TransposedLinear(), nn.Conv2d(4, 1, 3, padding=1)
        )
        self.heads['c'][0].weight = self.heads['a'][0].weight  # tied between two heads
        self.to(memory_format=torch.channels_last)

    def losses(self, inputs, a, b, c):
        return super().losses(inputs.contiguous(memory_format=torch.channels_last), a, b, c)


class ChannelsLastZ(ToyModel):
    """Contiguous weights whose gradients come in channels_last, because Z does."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 4, 3, padding=1))

    def losses(self, inputs, a, b, c):
        return super().losses(inputs.contiguous(memory_format=torch.channels_last), a, b, c)


class Seen(torch.optim.SGD):
    """Looks at the strides when it steps."""

    def step(self, closure=None):
        for p in (p for group in self.param_groups for p in group['params'] if p.grad is not None):
            dense = (
                p.is_contiguous() or p.is_contiguous(memory_format=torch.channels_last) or p.t().is_contiguous()
                if p.dim() == 2
                else True
            )
            if dense:
                assert p.grad.stride() == p.stride(), (tuple(p.shape), p.stride(), p.grad.stride())
            else:
                assert p.grad.is_contiguous()
        return super().step(closure)


def train(cls, name, optimizer=Seen, dtype=torch.float64, steps=2, **changes):
    model = make_model(cls=cls, dtype=dtype)
    settings = ready(name, **changes)
    wrapper = MultiTaskOptimWrapper(optimizer(model.parameters()), shared='encoder', **settings)
    run(
        model, wrapper, [make_batch(seed=i, dtype=dtype) for i in range(steps * settings.get('accumulative_counts', 1))]
    )
    return model


@pytest.mark.parametrize('cls', [Layouts, ChannelsLastZ])
@pytest.mark.parametrize('name', CASES)
def test_every_method_writes_gradients_with_the_strides_of_the_parameters(name, cls):
    train(cls, name, lambda p: Seen(p, lr=0.01))


@pytest.mark.parametrize('name', ['ew', 'pcgrad', 'pcgrad@representation', 'graddrop', 'nash-mtl', 'db-mtl', 'mtadam'])
@pytest.mark.parametrize(
    'changes',
    [
        dict(regularizers=[REP]),
        dict(accumulative_counts=2),
        dict(regularizers=[REP], accumulative_counts=2, precision='bf16'),
        dict(precision='fp16', loss_scale=dict(init_scale=256.0)),
        dict(clip_grad=dict(max_norm=0.1)),
    ],
    ids=str,
)
def test_with_penalties_accumulation_low_precision_and_clipping(name, changes):
    if name == 'mtadam' and 'clip_grad' in changes:
        pytest.skip('MTAdam is an optimizer, which clip_grad is refused for')
    dtype = torch.float32 if 'precision' in changes else torch.float64
    train(Layouts, name, lambda p: Seen(p, lr=0.01), dtype, **changes)


KINDS = {
    'sgd': lambda p, **how: torch.optim.SGD(p, lr=0.05, momentum=0.9, **how),
    'adam': lambda p, **how: torch.optim.Adam(p, lr=1e-3, eps=1e-3, **how),
    'adamw': lambda p, **how: torch.optim.AdamW(p, lr=1e-3, eps=1e-3, weight_decay=0.1, **how),
}


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', ['ew', 'pcgrad', 'pcgrad@representation', 'nash-mtl', 'metabalance', 'db-mtl'])
def test_fused_foreach_and_single_tensor_optimizers_train_alike(name, kind):
    found = [
        train(ChannelsLastZ, name, lambda p, how=how: KINDS[kind](p, **how), torch.float64, steps=8)
        for how in (dict(foreach=False, fused=False), dict(foreach=True), dict(fused=True))
    ]
    assert max_difference(found[1], found[0]) < 1e-9 and max_difference(found[2], found[0]) < 1e-9
    assert max_difference(found[0], make_model(cls=ChannelsLastZ)) > 1e-3


@pytest.mark.parametrize('name', [name for name in ('pcgrad', 'graddrop', 'sdmgrad', 'moco', 'mtadam')])
def test_the_layout_changes_nothing_but_the_place_in_memory(name):
    """State and random draws belong to weights, not to their places: a contiguous copy trains alike."""

    class Contiguous(Layouts):
        def __init__(self):
            super().__init__()
            for module in self.modules():
                for key, p in list(module._parameters.items()):
                    if p is not None:
                        module._parameters[key] = nn.Parameter(p.detach().contiguous())
            self.heads['c'][0].weight = self.heads['a'][0].weight

    settings = dict(level='parameter') if 'representation' not in name else {}
    aggregator = settings_of(name)['aggregator'] | settings
    models = [
        train(cls, name, lambda p: torch.optim.SGD(p, lr=0.01), aggregator=aggregator) for cls in (Layouts, Contiguous)
    ]
    assert max_difference(*models) < 1e-9


LEAVES = dict(
    channels_last=lambda: torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last),
    one_by_one=lambda: torch.randn(4, 3, 1, 1).to(memory_format=torch.channels_last),
    transposed=lambda: torch.randn(4, 3).t(),
    permuted=lambda: torch.randn(2, 3, 4, 5).permute(3, 1, 0, 2),
    volume=lambda: torch.randn(2, 3, 2, 2, 2).to(memory_format=torch.channels_last_3d),
    scalar=lambda: torch.randn(()),
    single=lambda: torch.randn(3, 1).t(),
    empty=lambda: torch.randn(0, 3),
)


@pytest.mark.parametrize('leaf', LEAVES)
def test_gradients_of_any_layout_come_into_that_of_the_parameter(leaf):
    p = nn.Parameter(LEAVES[leaf]())
    values = torch.randn(p.shape)
    for grad in (
        values,
        values.clone(memory_format=torch.contiguous_format),
        values.mT.contiguous().mT if p.dim() > 1 else values,
    ):
        found = in_layout_of(grad, p)
        assert found.stride() == p.stride() and torch.equal(found, values)
    flat = torch.cat([torch.zeros(3), values.flatten(), torch.zeros(2)])
    part = segment_in_layout_of(flat[3 : 3 + p.numel()], p)
    assert part.stride() == p.stride() and torch.equal(part, values)
    assert part.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr() and not flat[:3].any()
    accumulate([p], [values.clone()])
    accumulate([p], [values.clone()])
    average_gradients([p], None)
    assert p.grad.stride() == p.stride() and torch.equal(p.grad, 2 * values)


def test_a_parameter_that_leaves_memory_out_gets_a_contiguous_gradient():
    for p in (nn.Parameter(torch.zeros(4, 6)[:, :3]), nn.Parameter(torch.zeros(4, 1).expand(4, 3))):
        grad = in_layout_of(torch.ones(3, 4).t(), p)
        assert grad.is_contiguous() and torch.equal(grad, torch.ones(4, 3))
