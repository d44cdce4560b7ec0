"""Aggregators that need full gradients or keep state of their size, by the properties that they share."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmrepmtl.methods.aggregation import DBMTL, ExcessMTL, GradDrop, MetaBalance, MoCo, MTAdam, state
from tests.methods.stateful_reference import build, history, run, saved

KINDS = [DBMTL, ExcessMTL, GradDrop, MetaBalance, MoCo, MTAdam]
STATEFUL = [kind for kind in KINDS if kind.keeps_gradients]


def per_task(aggregator):
    """The part of the state that belongs to tasks."""
    return {name: b for name, b in aggregator.named_buffers() if name.split('_')[-1] in ('TP', 'T', 'TL')}


@pytest.mark.parametrize('kind', KINDS)
def test_gradients_are_only_read(kind):
    gradients, losses = history()
    before, aggregator = gradients.clone(), build(kind)
    combined = run(aggregator, gradients, losses)
    assert torch.equal(gradients, before)
    storages = {gradients.untyped_storage().data_ptr(), *(b.untyped_storage().data_ptr() for b in aggregator.buffers())}
    assert not any(result.untyped_storage().data_ptr() in storages for result in combined)


@pytest.mark.parametrize('with_setup', [True, False])
@pytest.mark.parametrize('kind', KINDS)
def test_a_resumed_run_is_the_same_bit_for_bit(kind, with_setup):
    gradients, losses = (values.float() for values in history())
    first, second = (build(kind) if with_setup else kind() for _ in range(2))
    run(first, gradients[:4], losses[:4])
    state_dict = saved(first)
    second.load_state_dict(state_dict)
    kept = copy.deepcopy(state_dict)
    for k in range(4, 8):
        assert torch.equal(first(gradients[k], losses[k])[0], second(gradients[k], losses[k])[0])
    final, other = first.state_dict(), second.state_dict()
    assert final.keys() == other.keys() and all(torch.equal(final[name], other[name]) for name in final)
    assert all(torch.equal(kept[name], state_dict[name]) for name in kept)  # the checkpoint is not worked on
    second.load_state_dict(kept)  # a state replaces one that exists
    assert all(torch.equal(value, kept[name]) for name, value in second.state_dict().items())
    second.load_state_dict(kind().state_dict())
    assert not list(second.buffers())


@pytest.mark.parametrize('kind', STATEFUL)
def test_changed_shapes_are_refused_before_the_state_is_touched(kind):
    gradients, losses = history()
    aggregator = kind()
    run(aggregator, gradients[:2], losses[:2])
    before = copy.deepcopy(aggregator.state_dict())
    with pytest.raises(ValueError, match='11.* 10'):
        aggregator(gradients[2][:, :10], losses[2])
    with pytest.raises(ValueError, match=r'\(3.*\(2'):
        aggregator(gradients[2][:2], losses[2][:2])
    assert all(torch.equal(value, before[name]) for name, value in aggregator.state_dict().items())


@pytest.mark.parametrize('kind', [MetaBalance, MTAdam])
def test_layers_must_cover_the_gradient_and_stay(kind):
    gradients, losses = history()
    aggregator = build(kind)
    with pytest.raises(ValueError, match='11 elements in all, the gradients have 10'):
        aggregator(gradients[0][:, :10], losses[0])
    aggregator(gradients[0], losses[0])
    other = kind()
    other.load_state_dict(saved(aggregator))
    other.setup(3, (5, 6))
    with pytest.raises(ValueError, match='3 layers of 11 elements in all, the gradients now have 2 of 11'):
        other(gradients[1], losses[1])


@pytest.mark.parametrize('kind', KINDS)
def test_an_unlabelled_task_adds_nothing_and_keeps_its_state(kind):
    gradients, losses = history(missing=False)
    aggregator = build(kind)
    run(aggregator, gradients[:2], losses[:2])
    before = {name: value.clone() for name, value in per_task(aggregator).items()}
    gradients[2, 2], losses[2, 2] = 0, 0
    assert torch.isfinite(aggregator(gradients[2], losses[2])[0]).all()
    for name, value in per_task(aggregator).items():
        assert torch.equal(value[2], before[name][2]), name
        if name != 'first_T':  # the reference of a first step stays for all
            assert not torch.equal(value[:2], before[name][:2]), name


@pytest.mark.parametrize('kind', KINDS)
def test_a_batch_without_labels_is_no_step(kind):
    gradients, losses = history(missing=False)
    aggregator = build(kind)
    combined, weights = aggregator(torch.zeros_like(gradients[0]), torch.zeros(3))
    assert (combined == 0).all() and (weights is None or torch.isfinite(weights).all())
    run(aggregator, gradients[:2], losses[:2])
    before = {name: value.clone() for name, value in aggregator.named_buffers()}
    assert (aggregator(torch.zeros_like(gradients[0]), torch.zeros(3))[0] == 0).all()
    assert all(torch.equal(value, before[name]) for name, value in aggregator.named_buffers())


@pytest.mark.parametrize('norm', [1e-10, 1e10])
@pytest.mark.parametrize('kind', [kind for kind in KINDS if kind is not GradDrop])
def test_float32_is_enough_at_any_scale(kind, norm):
    gradients, losses = history()
    factors = torch.tensor([1.0, 1e-4, 1e2], dtype=torch.float64)
    gradients, losses = gradients * norm * factors[:, None], losses * (1e6 if norm > 1 else 1e-6)
    exact = run(build(kind), gradients, losses)
    rounded = run(build(kind), gradients.float(), losses.float())
    for a, b in zip(exact, rounded, strict=True):
        assert b.dtype == torch.float32 and torch.allclose(b.double(), a, rtol=1e-4, atol=1e-4 * a.abs().max())


@pytest.mark.parametrize('scale', [1e-6, 1e6])
@pytest.mark.parametrize('kind', KINDS)
def test_scaling_all_gradients_scales_the_result(kind, scale):
    gradients, losses = history()
    plain, scaled = run(build(kind), gradients, losses), run(build(kind), gradients * scale, losses)
    factor = 1 if kind.returns == 'update' else scale
    for a, b in zip(plain, scaled, strict=True):
        assert torch.allclose(b, a * factor, rtol=1e-9)


@pytest.mark.parametrize('kind', [kind for kind in KINDS if kind.returns == 'gradient'])
def test_one_task_is_plain_training_in_its_first_step(kind):
    gradients = history(num_tasks=1, missing=False)[0][0]
    assert torch.allclose(kind()(gradients, torch.ones(1))[0], gradients[0])


class Allocations(TorchDispatchMode):
    """Collects the storages of at least ``size`` elements that operations make."""

    def __init__(self, size, known):
        super().__init__()
        self.size, self.known, self.made = size, known, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_leaves(result):
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                if storage.nbytes() >= self.size * value.element_size() and storage.data_ptr() not in self.known:
                    self.made[storage.data_ptr()] = (str(func), storage)  # held, so that no address is used twice
        return result


@pytest.mark.parametrize('kind', KINDS)
def test_a_step_holds_one_result_beside_gradients_and_state(kind, monkeypatch):
    monkeypatch.setattr(state, 'COLUMNS', 2**14)
    size = 600_000  # base.gramian works on 2**18 columns at once
    gradients, losses = torch.randn(2, size, generator=torch.Generator().manual_seed(0)), torch.ones(2)
    aggregator = kind()
    aggregator.setup(2, (size - 5, 5))
    aggregator(gradients, losses)
    known = {value.untyped_storage().data_ptr() for value in (gradients, *aggregator.buffers())}
    with Allocations(size, known) as allocations:
        combined = aggregator(gradients, losses)[0]
    made = [name for name, storage in allocations.made.values() if storage.data_ptr() != combined.data_ptr()]
    assert not made and combined.data_ptr() in allocations.made


@pytest.mark.parametrize('kind', [kind for kind in KINDS if kind is not GradDrop])
def test_pieces_of_columns_do_not_change_the_result(kind, monkeypatch):
    gradients, losses = history()
    whole = run(build(kind), gradients, losses)
    monkeypatch.setattr(state, 'COLUMNS', 3)
    for a, b in zip(whole, run(build(kind), gradients, losses), strict=True):
        assert torch.allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize(
    'kind, arguments',
    [
        (DBMTL, dict(beta=1.0)),
        (DBMTL, dict(beta_decay=-1.0)),
        (ExcessMTL, dict(eta=-0.1)),
        (GradDrop, dict(leak=1.5)),
        (MetaBalance, dict(beta=1.0)),
        (MetaBalance, dict(relax=1.1)),
        (MetaBalance, dict(strategy='A')),
        (MoCo, dict(beta=0.0)),
        (MoCo, dict(gamma=-1.0)),
        (MTAdam, dict(betas=(0.9, 0.999))),
        (MTAdam, dict(betas=(0.9, 1.0, 0.9))),
        (MTAdam, dict(eps=0.0)),
        *((kind, dict(level='representation')) for kind in STATEFUL),
        *((kind, dict(weight_heads=True)) for kind in KINDS if kind is not ExcessMTL),
    ],
)
def test_bad_arguments_are_refused_by_name(kind, arguments):
    with pytest.raises(ValueError, match=f'{kind.__name__}: .*{next(iter(arguments))[:4]}'):
        kind(**arguments)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('kind', [kind for kind in KINDS if kind is not GradDrop])
def test_a_cuda_device_continues_what_the_cpu_began(kind):
    gradients, losses = history()
    first, second = build(kind), build(kind)
    run(first, gradients[:4], losses[:4])
    second.load_state_dict(saved(first))
    for k in range(4, 8):
        there = second(gradients[k].cuda(), losses[k].cuda())[0]
        assert there.is_cuda and torch.allclose(there.cpu(), first(gradients[k], losses[k])[0], rtol=1e-9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_graddrop_draws_where_the_gradients_are():
    gradients, losses = history(missing=False)
    first, second = GradDrop(seed=1), GradDrop(seed=2)
    first(gradients[0].cuda(), losses[0].cuda())
    second.load_state_dict(saved(first))
    combined = [a(gradients[1].cuda(), losses[1].cuda())[0] for a in (first, second)]
    assert combined[0].is_cuda and torch.equal(*combined)
