"""torchjd's Gramian weightings as aggregators: against torchjd called directly, and by the properties of all others."""

import io
import json
import sys

import pytest
import torch
from torch import nn

import mmrepmtl.engine  # noqa: F401  fills the registries
from mmrepmtl.engine import MultiTaskOptimWrapper
from mmrepmtl.methods.aggregation import IMTLG, AlignedMTL, PCGrad, TorchJD, UPGrad
from tests.distributed import harness as ddp
from tests.distributed.launch import run_processes
from tests.engine import reference
from tests.engine.harness import run
from tests.engine.toy import Masked, make_batch, make_model, masked_batch
from tests.methods import aggregator_properties as properties

torchjd = pytest.importorskip('torchjd.aggregation', reason='torchjd is not installed')

#: Arguments that a weighting cannot do without.
ARGUMENTS = dict(CAGradWeighting=dict(c=0.4), FairGradWeighting=dict(alpha=2.0), KrumWeighting=dict(n_byzantine=1))
STATEFUL = ['GradVacWeighting', 'PCDWeighting']
STATELESS = [
    'AlignedMTLWeighting',
    'CAGradWeighting',
    'DualProjWeighting',
    'FairGradWeighting',
    'IMTLGWeighting',
    'KrumWeighting',
    'MGDAWeighting',
    'PCGradWeighting',
    'UPGradWeighting',
]
ONES = torch.ones(5, dtype=torch.float64)


def create(name, **settings):
    """The adapter; skips the test where the weighting's solver is not installed."""
    try:
        return TorchJD(name, ARGUMENTS.get(name), **settings)
    except ImportError as error:
        pytest.skip(str(error))


def rows(num_tasks=5, seed=0):
    return torch.randn(num_tasks, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_all_that_torchjd_has_are_known():
    with pytest.raises(ValueError, match='torchjd 0.18') as error:
        TorchJD('Krum')
    assert sorted(str(error.value).rpartition('there are ')[2].split(', ')) == sorted(STATELESS + STATEFUL)


@pytest.mark.parametrize('name', STATELESS + STATEFUL)
def test_the_weights_are_torchjds(name):
    """Over several steps, with the random numbers that it would draw after ``torch.manual_seed``."""
    adapter = create(name, normalize=name not in ('FairGradWeighting', *STATEFUL), seed=3)
    direct = getattr(torchjd, name)(**ARGUMENTS.get(name, {}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for seed in range(4):
            want = direct(rows(seed=seed) @ rows(seed=seed).T)
            combined, found = adapter(rows(seed=seed), ONES)
            assert torch.allclose(found, want, rtol=1e-7) and torch.allclose(combined, want @ rows(seed=seed))


@pytest.mark.parametrize('scale', [1e-6, 1.0, 1e6])
@pytest.mark.parametrize('name', STATELESS)
def test_the_unit_of_the_losses_does_not_matter(name, scale):
    want, found = create(name)(rows(), ONES)[0], create(name)(rows() * scale, ONES)[0]
    assert torch.allclose(found, want * scale, rtol=1e-6, atol=1e-6 * scale)


def test_without_normalization_it_is_torchjd_that_sees_the_unit():
    small = rows() * 1e-6
    found = create('FairGradWeighting', normalize=False)(small, ONES)[1]
    assert torch.equal(found, torchjd.FairGradWeighting(2.0)(small @ small.T))
    assert not torch.allclose(found, create('FairGradWeighting')(small, ONES)[1], rtol=0.5)


def by_class(kind):
    return lambda grads: kind()(grads, ONES[: len(grads)])[0]


@pytest.mark.parametrize('scale', [1e-6, 1.0, 1e6])
@pytest.mark.parametrize(
    'name, settings, ours',
    [
        ('AlignedMTLWeighting', dict(factor='tasks'), by_class(AlignedMTL)),
        ('IMTLGWeighting', dict(), by_class(IMTLG)),
        ('PCGradWeighting', dict(), lambda grads: reference.pcgrad(grads, torch.Generator().manual_seed(0))),
        (
            'UPGradWeighting',
            dict(arguments=dict(projector=dict(type='QuadprogProjector', reg_eps=1e-14))),
            by_class(UPGrad),
        ),
    ],
)
def test_tasks_far_apart(name, settings, ours, scale):
    """Holds for weightings whose solver allows it: at most 1e-4 from solutions that are tested against enumeration."""
    grads = rows(3) * scale * torch.tensor([1.0, 1e-2, 1e-4], dtype=torch.float64)[:, None]
    try:
        adapter = TorchJD(name, **settings)
    except ImportError as error:
        pytest.skip(str(error))
    want = ours(grads)
    assert (adapter(grads, ONES[:3])[0] - want).norm() < 1e-4 * want.norm()


def test_the_last_task_left_has_the_weight_of_an_equation_with_a_scale():
    """``|g|^2 w = w^(-1 / 2)``; a weighting without a scale, and a single task, are plain training."""
    grads = rows(3) * torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)[:, None]
    try:
        fair = TorchJD('FairGradWeighting', dict(alpha=2.0, max_iters=100_000), normalize=False)
    except ImportError as error:
        pytest.skip(str(error))
    assert fair(grads, ONES[:3])[1][0] == pytest.approx(float(grads[0].norm()) ** (-4 / 3), rel=1e-4)
    assert fair(grads[:1], ONES[:1])[1].tolist() == [1.0]
    assert TorchJD('MGDAWeighting')(grads, ONES[:3])[1].tolist() == [1.0, 0.0, 0.0]


#: (weighting, property) of every aggregator.
PROPERTIES = [
    (name, check)
    for name in ('AlignedMTLWeighting', 'IMTLGWeighting', 'MGDAWeighting', 'PCGradWeighting')
    for check in (
        properties.check_one_task_is_plain_training,
        properties.check_a_task_without_gradient_is_as_if_it_did_not_exist,
        properties.check_zero_gradients_give_zero,
        properties.check_the_weights_are_those_that_are_applied,
        properties.check_a_saved_state_continues_bit_for_bit,
        properties.check_levels_and_heads_are_as_declared,
        properties.check_the_gramian_is_all_that_is_needed,
    )
] + [(name, properties.check_a_saved_state_continues_bit_for_bit) for name in STATEFUL]


@pytest.mark.parametrize('name, check', PROPERTIES)
def test_it_has_the_properties_of_every_aggregator(name, check, monkeypatch):
    monkeypatch.setitem(properties.SETTINGS, 'TorchJD', dict(weighting=name))
    check('TorchJD')


@pytest.mark.parametrize('name', STATEFUL)
def test_an_absent_task_is_a_zero_row_to_a_weighting_with_state(name):
    adapter, direct = create(name), getattr(torchjd, name)()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for seed in range(4):
            grads = rows(3, seed)
            grads[1] *= seed != 2
            combined, found = adapter(grads, ONES[:3])
            want = direct(grads @ grads.T)
            assert torch.allclose(combined, want @ grads) and torch.equal(found != 0, (want != 0) & grads.any(1))


def test_a_state_of_another_number_of_tasks_is_replaced():
    first, second = TorchJD('PCDWeighting'), TorchJD('PCDWeighting')
    first(rows(3), ONES[:3])
    second(rows(5), ONES)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(rows(3, 1), ONES[:3])[0], second(rows(3, 1), ONES[:3])[0])
    second.load_state_dict(TorchJD('PCDWeighting').state_dict())  # of before the first step
    assert torch.equal(second(rows(5), ONES)[0], TorchJD('PCDWeighting')(rows(5), ONES)[0])


def test_draws_are_its_own():
    """Equal for equal seeds, whatever else draws; and nothing else is moved."""
    first, second, other = (TorchJD('PCGradWeighting', seed=seed) for seed in (1, 1, 2))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    ours = [first(rows(seed=seed), ONES)[0] for seed in range(5)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert all(torch.equal(want, second(rows(seed=seed), ONES)[0]) for seed, want in enumerate(ours))
    assert not all(torch.equal(want, other(rows(seed=seed), ONES)[0]) for seed, want in enumerate(ours))


def test_pcgrad_goes_on_drawing():
    pcgrad, generator = PCGrad(seed=3), torch.Generator().manual_seed(3)
    for seed in range(5):
        want = reference.pcgrad(rows(seed=seed), generator)
        assert torch.allclose(pcgrad(rows(seed=seed), ONES)[0], want, rtol=1e-10)


def test_the_factor_scales_the_weights():
    plain = TorchJD('AlignedMTLWeighting')(rows(), ONES)[1]
    assert torch.allclose(TorchJD('AlignedMTLWeighting', factor=2.5)(rows(), ONES)[1], 2.5 * plain)
    grads = rows()
    grads[3] = 0
    plain = TorchJD('AlignedMTLWeighting')(grads, ONES)[1]
    assert torch.allclose(TorchJD('AlignedMTLWeighting', factor='tasks')(grads, ONES)[1], 4 * plain)


def test_lists_become_tensors():
    weights = TorchJD('AlignedMTLWeighting', dict(pref_vector=[1, 0, 0, 0, 1]))(rows(), ONES)[1]
    pref = torch.tensor([1.0, 0, 0, 0, 1], dtype=torch.float64)
    assert torch.allclose(weights, torchjd.AlignedMTLWeighting(pref)(rows() @ rows().T))


def wrap(model, **settings):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    aggregator = dict(type='TorchJD', **settings)
    return MultiTaskOptimWrapper(optimizer, shared='encoder', accumulative_counts=2, aggregator=aggregator)


@pytest.mark.parametrize('level', ['parameter', 'representation'])
@pytest.mark.parametrize('weighting', ['PCGradWeighting', 'GradVacWeighting'])
def test_in_the_engine_a_resumed_run_is_the_same_bit_for_bit(weighting, level):
    batches, settings = [make_batch(seed=seed) for seed in range(10)], dict(weighting=weighting, level=level)
    model, other = make_model(), make_model(seed=1)
    wrapper = wrap(model, **settings)
    run(model, wrapper, batches[:6])
    buffer = io.BytesIO()
    torch.save(dict(model=model.state_dict(), wrapper=wrapper.state_dict()), buffer)
    run(model, wrapper, batches[6:])
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    other.load_state_dict(state['model'])
    resumed = wrap(other, **settings)
    resumed.load_state_dict(state['wrapper'])
    resumed._inner_count = 6
    run(other, resumed, batches[6:])
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


#: With draws, with state, at Z, with accumulation; batches lack the labels of a task now and then.
IN_TWO_PROCESSES = {
    'draws': dict(aggregator=dict(type='TorchJD', weighting='PCGradWeighting'), accumulative_counts=2),
    'state': dict(aggregator=dict(type='TorchJD', weighting='PCDWeighting'), accumulative_counts=2),
    'both, at Z': dict(aggregator=dict(type='TorchJD', weighting='GradVacWeighting', level='representation')),
}


def train_all(rank):
    return {case: ddp.train(rank, 'ew', changes) for case, changes in IN_TWO_PROCESSES.items()}


@pytest.mark.slow
def test_two_processes_equal_one():
    first, second = run_processes(train_all)
    for case, changes in IN_TWO_PROCESSES.items():
        model = make_model(cls=Masked)
        wrapper = ddp.wrapper_of(model, 'ew', changes)
        for seed in range(ddp.STEPS * wrapper._accumulative_counts):
            model.train_step(masked_batch(ddp.WHOLE, seed), wrapper)
        ddp.assert_close(first[case], second[case], f'{case}: ranks', 0.0)
        want = dict(parameters=[p.detach() for p in model.parameters()], state=ddp.state_of(wrapper))
        ddp.assert_close(first[case], want, case, 1e-8)


def test_another_weighting_is_another_run():
    state = wrap(make_model(), weighting='KrumWeighting', arguments=dict(n_byzantine=0)).state_dict()
    with pytest.raises(RuntimeError, match='n_byzantine'):
        wrap(make_model(), weighting='KrumWeighting', arguments=dict(n_byzantine=1)).load_state_dict(state)


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(weighting='CRMOGMWeighting'), 'no Gramian weighting .*there are AlignedMTLWeighting'),
        (dict(weighting='KrumWeighting'), r'KrumWeighting takes \(n_byzantine.*missing'),
        (dict(weighting='KrumWeighting', arguments=dict(number=1)), 'KrumWeighting takes .*n_selected'),
        (dict(weighting='KrumWeighting', arguments=dict(n_byzantine=-1)), 'KrumWeighting: n_byzantine must be'),
        (dict(weighting='KrumWeighting', arguments=dict(n_byzantine='one')), 'KrumWeighting: '),
        (dict(weighting='UPGradWeighting', arguments=dict(projector=dict(type='Own'))), 'QuadprogProjector'),
        (
            dict(weighting='UPGradWeighting', arguments=dict(projector=dict(type='QuadprogProjector', eps=1))),
            'projector: QuadprogProjector takes .*reg_eps',
        ),
        (dict(weighting='MGDAWeighting', factor=0), "positive number or 'tasks', got 0"),
        (dict(weighting='MGDAWeighting', factor='T'), "positive number or 'tasks', got 'T'"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=f'^TorchJD: .*{message}'):
        TorchJD(**settings)


def test_gradients_that_the_weighting_refuses():
    with pytest.raises(ValueError, match='TorchJD: KrumWeighting of 3 tasks with a gradient: .*at least 4 rows'):
        create('KrumWeighting')(rows(3), ONES[:3])


def test_what_is_not_installed_is_said(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr('torchjd._mixins.find_spec', lambda name: None)
        with pytest.raises(ImportError, match=r'TorchJD: CAGradWeighting: .*cvxpy.*pip install "torchjd\[cagrad\]"'):
            TorchJD('CAGradWeighting', dict(c=0.4))
    monkeypatch.setitem(sys.modules, 'torchjd.aggregation', None)
    for build in (PCGrad, lambda: TorchJD('MGDAWeighting')):
        with pytest.raises(ImportError, match="pip install 'torchjd>=0.18,<0.19'"):
            build()


def add_weighting(monkeypatch, forward, *bases):
    """A Gramian weighting of a torchjd that has one more."""
    base = torchjd.PCGradWeighting.__mro__[1]
    kind = type('OwnWeighting', (base, *bases), dict(forward=forward, reset=lambda self: None))
    monkeypatch.setattr(torchjd, 'OwnWeighting', kind, raising=False)
    monkeypatch.setattr(torchjd, '__all__', [*torchjd.__all__, 'OwnWeighting'])


def test_state_that_no_checkpoint_would_hold_is_refused(monkeypatch):
    from torchjd import Stateful

    add_weighting(monkeypatch, lambda self, gramian: gramian[0], Stateful)
    with pytest.raises(ValueError, match='OwnWeighting keeps state that is not in its state_dict'):
        TorchJD('OwnWeighting')


def test_weights_that_are_not_finite_stop_training(monkeypatch):
    add_weighting(monkeypatch, lambda self, gramian: gramian[0] / 0)
    with pytest.raises(RuntimeError, match='OwnWeighting returned the weights .*solver has failed'):
        TorchJD('OwnWeighting')(rows(), ONES)


def test_settings_are_plain_data():
    signature = wrap(make_model(), weighting='MGDAWeighting', arguments=dict(max_iters=7)).signature
    assert json.loads(json.dumps(signature))['aggregator']['arguments'] == dict(max_iters=7)
    assert isinstance(TorchJD('MGDAWeighting', dict(max_iters=7)).solver, nn.Module)
