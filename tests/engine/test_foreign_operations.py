"""Operations of users' models that torch differentiates once, sparsely, or not at all: right, or one clear error."""

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmrepmtl.engine import MultiTaskOptimWrapper
from tests.engine.harness import REP, run, wrap
from tests.engine.toy import ToyModel, make_batch, make_model, max_difference

SETTINGS = dict(
    ew=dict(),
    rep=dict(regularizers=[REP]),
    pcgrad=dict(aggregator=dict(type='PCGrad')),
    both=dict(aggregator=dict(type='CAGrad'), regularizers=[REP]),
    rows=dict(aggregator=dict(type='MoCo')),
    heads=dict(aggregator=dict(type='DBMTL')),
    z=dict(aggregator=dict(type='PCGrad', level='representation')),
    clip=dict(aggregator=dict(type='NashMTL'), clip_grad=dict(max_norm=0.1)),
)
AGGREGATED = {key: value for key, value in SETTINGS.items() if 'aggregator' in value}


class Codes(nn.Module):
    """An embedding of the signs of the first channel, added to the input."""

    def __init__(self, channels, out, sparse):
        super().__init__()
        self.table, self.conv = nn.Embedding(2, channels, sparse=sparse), nn.Conv2d(channels, out, 3, padding=1)

    def forward(self, x):
        return self.conv(x + self.table((x[:, 0] > 0).long()).movedim(-1, 1)).tanh()


def embedded(where, sparse):
    class Embedded(ToyModel):
        def __init__(self):
            super().__init__()
            if where == 'encoder':
                self.encoder = Codes(3, 4, sparse)
            else:
                self.heads['b'] = Codes(4, 1, sparse)

    return Embedded


@pytest.mark.parametrize('where', ['encoder', 'head'])
@pytest.mark.parametrize('settings', SETTINGS)
def test_sparse_gradients_train_as_dense_ones(settings, where):
    found = []
    for sparse in (True, False):
        model = make_model(cls=embedded(where, sparse))
        run(model, wrap(model, **SETTINGS[settings]), [make_batch(seed=i) for i in range(3)])
        found.append(model)
    assert max_difference(*found) < 1e-12


def test_optimizers_that_cannot_take_them_are_told_of_by_the_parameters_name():
    model = make_model(cls=embedded('head', True))
    wrapper = MultiTaskOptimWrapper(torch.optim.Adam(model.parameters()), shared='encoder')
    with pytest.raises(ValueError, match=r"\['heads.b.table.weight'\] are sparse .*set sparse=False there"):
        run(model, wrapper, [make_batch()])
    model = make_model(cls=embedded('head', True))
    wrapper = MultiTaskOptimWrapper(torch.optim.SparseAdam(model.parameters()), shared='encoder', **SETTINGS['pcgrad'])
    with pytest.raises(ValueError, match='takes sparse gradients only, and an aggregator writes dense ones'):
        run(model, wrapper, [make_batch()])


class Deformable(nn.Module):
    def __init__(self):
        super().__init__()
        self.offset = nn.Conv2d(4, 18, 3, padding=1)
        self.weight = nn.Parameter(0.1 * torch.randn(1, 4, 3, 3))

    def forward(self, z):
        return torchvision.ops.deform_conv2d(z, self.offset(z), self.weight, padding=1)


class Regions(nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(4, 1, 1), pool

    def forward(self, z):
        boxes = torch.tensor([[i, 0, 0, 4, 4] for i in range(len(z))], dtype=z.dtype)
        return self.conv(self.pool(z, boxes, (6, 5)))


HEADS = dict(
    deform_conv2d=Deformable,
    roi_align=lambda: Regions(torchvision.ops.roi_align),
    roi_pool=lambda: Regions(torchvision.ops.roi_pool),
)


def with_head(make):
    class WithHead(ToyModel):
        def __init__(self):
            super().__init__()
            self.heads['b'] = make()

    return WithHead


@pytest.mark.parametrize('operation', ['deform_conv2d', 'roi_align', 'roi_pool'])
def test_operations_without_a_second_derivative(operation):
    model = make_model(cls=with_head(HEADS[operation]))
    for settings in ('rep', 'both'):
        with pytest.raises(ValueError, match=f"head of task 'b' cannot be differentiated twice.*{operation} has no"):
            run(model, wrap(model, **SETTINGS[settings]), [make_batch()])
    for settings in ('ew', 'pcgrad', 'z'):
        run(model, wrap(model, **SETTINGS[settings]), [make_batch()])


class Recomputed(nn.Module):
    def __init__(self, inner, reentrant):
        super().__init__()
        self.inner, self.reentrant = inner, reentrant

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=self.reentrant)


def recomputed(where, reentrant):
    class Model(ToyModel):
        def __init__(self):
            super().__init__()
            if where == 'head':
                self.heads['b'] = Recomputed(self.heads['b'], reentrant)
            elif where == 'encoder':
                self.encoder[2] = Recomputed(self.encoder[2], reentrant)
            else:
                self.encoder = Recomputed(self.encoder, reentrant)

    return Model


@pytest.mark.parametrize('where', ['head', 'encoder', 'all of the encoder'])
@pytest.mark.parametrize('settings', SETTINGS)
def test_reentrant_checkpointing_is_refused_or_right(settings, where):
    """Silently cuts all of the encoder off if the input needs no gradient."""
    batch, expected = make_batch(), make_model()
    run(expected, wrap(expected, **SETTINGS[settings]), [batch])
    model = make_model(cls=recomputed(where, False))
    run(model, wrap(model, **SETTINGS[settings]), [batch])
    assert max_difference(model, expected) < 1e-12
    model = make_model(cls=recomputed(where, True))
    works = settings == 'ew' and where != 'all of the encoder' or settings == 'rep' and where == 'encoder'
    if works:
        run(model, wrap(model, **SETTINGS[settings]), [batch])
        assert max_difference(model, expected) < 1e-12
    else:
        with pytest.raises((ValueError, RuntimeError), match='(MultiTaskOptimWrapper|task).*use_reentrant=False'):
            run(model, wrap(model, **SETTINGS[settings]), [batch])


def around_z(change, frozen=False):
    class Around(ToyModel):
        def __init__(self):
            super().__init__()
            self.encoder.requires_grad_(not frozen)

        def losses(self, inputs, a, b, c):
            z = change(self.encoder, inputs)
            return dict(
                a=nn.functional.cross_entropy(self.heads['a'](z), a),
                b=(self.heads['b'](z) - b).abs().mean(),
                c=((self.heads['c'](z) - c) ** 2).mean(),
            )

    return Around


def no_grad(encoder, inputs):
    with torch.no_grad():
        return encoder(inputs)


def inference_mode(encoder, inputs):
    with torch.inference_mode():
        return encoder(inputs)


@pytest.mark.parametrize('settings', SETTINGS)
def test_an_encoder_without_gradients_is_frozen_or_an_error(settings):
    model = make_model(cls=around_z(no_grad))
    with pytest.raises(RuntimeError, match=r"'encoder' has no gradient.*never learn.*no_grad.*requires_grad_\(False\)"):
        run(model, wrap(model, **SETTINGS[settings]), [make_batch()])
    model, other = make_model(cls=around_z(no_grad, True)), make_model(cls=around_z(lambda e, x: e(x), True))
    for m in (model, other):
        run(m, wrap(m, **SETTINGS[settings]), [make_batch(seed=i) for i in range(2)])
    assert max_difference(model, other) == 0 and max_difference(model.heads, make_model().heads) > 1e-5
    for frozen in (True, False):
        model = make_model(cls=around_z(inference_mode, frozen))
        with pytest.raises(RuntimeError, match="'encoder' ran under torch.inference_mode"):
            run(model, wrap(model, **SETTINGS[settings]), [make_batch()])


@pytest.mark.parametrize('settings', [key for key in SETTINGS if key != 'ew'])
def test_a_detached_z_is_an_error_where_a_method_reads_it(settings):
    model = make_model(cls=around_z(lambda encoder, x: encoder(x).detach()))
    with pytest.raises((ValueError, RuntimeError), match="loss of task 'a' does not depend on"):
        run(model, wrap(model, **SETTINGS[settings]), [make_batch()])


class Wrong(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.conv, self.change = nn.Conv2d(3, 4, 1), change

    def forward(self, x):
        return self.change(self.conv(x))


@pytest.mark.parametrize(
    'change, message',
    [
        (torch.fft.fft2, "'encoder' returned a complex tensor"),
        (lambda z: z.long(), "'encoder' returned no floating-point tensor but a tensor of torch.int64"),
        (lambda z: z.detach(), "'encoder' has no gradient"),
        (lambda z: None, "'encoder' returned no floating-point tensor but NoneType"),
    ],
)
def test_what_a_shared_module_may_not_return(change, message):
    class Model(ToyModel):
        def __init__(self):
            super().__init__()
            self.encoder = Wrong(change)

    for settings in SETTINGS.values():
        model = make_model(cls=Model)
        with pytest.raises(RuntimeError, match=message):
            run(model, wrap(model, **settings), [make_batch()])


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda loss: (10 * loss).long(), "loss 'b.loss' is a tensor of torch.int64"),
        (lambda loss: loss.to(torch.complex128), "loss 'b.loss' is a tensor of torch.complex128"),
        (lambda loss: loss.detach(), "loss of task 'b' has the value .* and no gradient"),
        (lambda loss: loss.new_zeros(0), "loss 'b.loss' is an empty tensor"),
        (lambda loss: float(loss), "loss 'b.loss' is neither a tensor nor a list of tensors but float"),
    ],
)
def test_what_a_loss_may_not_be(change, message):
    class Model(ToyModel):
        def losses(self, inputs, a, b, c):
            losses = super().losses(inputs, a, b, c)
            return dict(losses, b=change(losses['b']))

    for settings in SETTINGS.values():
        model = make_model(cls=Model)
        with pytest.raises(ValueError, match=message):
            run(model, wrap(model, **settings), [make_batch()])


@pytest.mark.parametrize('settings', SETTINGS)
def test_lazy_modules_are_made_by_the_first_batch(settings):
    class Lazy(ToyModel):
        def __init__(self):
            super().__init__()
            self.encoder, self.heads['b'] = (
                nn.Sequential(nn.LazyConv2d(4, 3, padding=1), nn.Tanh()),
                nn.LazyConv2d(1, 1),
            )

    torch.manual_seed(0)
    model = Lazy()
    wrapper = wrap(model, **SETTINGS[settings])
    wrapper.initialize_count_status(model, 0, 3)
    run(model, wrapper, [make_batch(dtype=torch.float32)])
    before = [p.clone() for p in model.parameters()]
    run(model, wrapper, [make_batch(seed=1, dtype=torch.float32)])
    assert not any(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_data_parallel_is_refused():
    model = make_model()
    with pytest.raises(RuntimeError, match='wrapped in DataParallel.*use DistributedDataParallel'):
        with wrap(model).optim_context(nn.DataParallel(model)):
            pass


def test_hooks_that_a_model_takes_away():
    class Clearing(ToyModel):
        def losses(self, inputs, a, b, c):
            self.encoder._forward_hooks.clear()
            return super().losses(inputs, a, b, c)

    model = make_model(cls=Clearing)
    with pytest.raises(RuntimeError, match="hook on the shared module 'encoder' did not fire"):
        run(model, wrap(model), [make_batch()])
