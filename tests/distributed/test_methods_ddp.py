"""Every method in two processes on parts of the batch against one process on the whole of it, state included."""

import pytest
import torch
from mmengine.model import MMDistributedDataParallel

from tests.distributed.harness import SIZES, STEPS, WHOLE, SizedModel, assert_close, state_of, train, wrapper_of
from tests.distributed.launch import run_processes
from tests.engine.harness import REP
from tests.engine.overlays import AGGREGATED, CASES, METHODS, is_at_parameters, settings_of
from tests.engine.toy import Masked, ToyModel, make_batch, make_model, masked_batch, split

pytestmark = pytest.mark.slow

PLAIN = {name: (name, {}) for name in CASES}
WITH_REP = {
    f'{name}-with-rep-mtl': (name, dict(regularizers=[REP]))
    for name in AGGREGATED
    if not settings_of(name)['regularizers']
}
ACCUMULATED = {
    f'{name}-x2': (name, dict(accumulative_counts=2 * settings_of(name).get('accumulative_counts', 1)))
    for name in METHODS
}
TRACED = [case for case in CASES if case.partition('@')[0] in AGGREGATED and case != 'sdmgrad']
EVERYTHING = PLAIN | WITH_REP | ACCUMULATED


class NanModel(SizedModel):
    """A batch whose c begins with 7 has no loss on the second rank."""

    def forward(self, inputs, a, b, c, mode='loss'):
        out = super().forward(inputs, a, b, c)
        return {**out, 'c.loss': out['c.loss'] * (float('nan') if c.flatten()[0] == 7 else 1.0)}


def train_skipping(rank, name):
    """The third batch has a loss that is not finite on one rank only."""
    model = make_model(cls=NanModel)
    wrapped = MMDistributedDataParallel(model)
    wrapper = wrapper_of(model, name, dict(on_nonfinite='skip'))
    for seed in (0, 1, 2, 3):
        part = split(make_batch(WHOLE, seed), SIZES)[rank]
        if seed == 2 and rank == 1:
            part['c'].view(-1)[0] = 7
        wrapped.train_step(part, wrapper)
    return dict(parameters=[p.detach() for p in model.parameters()], skipped=wrapper.policy.total)


class Watched:
    """An asynchronous reduction that says when it is waited for."""

    def __init__(self, work, events):
        self.work, self.events = work, events

    def wait(self):
        self.events.append(('wait', 0))
        return self.work.wait()


def trace(rank, name):
    """The acts of the backward of the second step: ('grad', 0), ('wait', 0), ('reduce' or 'start', elements)."""
    model, events = make_model(cls=SizedModel), []
    wrapped, wrapper = MMDistributedDataParallel(model), wrapper_of(model, name, dict(diagnostics_interval=0))
    wrapped.train_step(split(make_batch(WHOLE), SIZES)[rank], wrapper)
    grad, reduce, backward = torch.autograd.grad, torch.distributed.all_reduce, wrapper.backward

    def watched_grad(*args, **kwargs):
        events.append(('grad', 0))
        return grad(*args, **kwargs)

    def watched_reduce(tensor, *args, async_op=False, **kwargs):
        events.append(('start' if async_op else 'reduce', tensor.numel()))
        work = reduce(tensor, *args, async_op=async_op, **kwargs)
        return Watched(work, events) if async_op else work

    def watched_backward(*args, **kwargs):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.autograd, 'grad', watched_grad)
            patch.setattr(torch.distributed, 'all_reduce', watched_reduce)
            backward(*args, **kwargs)

    wrapper.backward = watched_backward
    wrapped.train_step(split(make_batch(WHOLE, 1), SIZES)[rank], wrapper)
    return events


def train_all(rank):
    found = {case: train(rank, *arguments) for case, arguments in EVERYTHING.items()}
    found |= {f'{name}-trace': trace(rank, name) for name in TRACED}
    return found | {f'{name}-skip': train_skipping(rank, name) for name in ('ew', 'pcgrad')}


@pytest.fixture(scope='module')
def processes():
    return run_processes(train_all)


@pytest.mark.parametrize('case', EVERYTHING)
def test_two_processes_equal_one(processes, case):
    name, changes = EVERYTHING[case]
    model = make_model(cls=Masked)
    wrapper = wrapper_of(model, name, changes)
    for seed in range(STEPS * wrapper._accumulative_counts):
        model.train_step(masked_batch(WHOLE, seed), wrapper)
    first, second = (process[case] for process in processes)
    assert_close(first['state'], second['state'], 'ranks', 0.0)
    # A generator in its agent and float32 networks magnify the last digits of the losses.
    rtol = 1e-4 if name == 'igbv2' else 1e-8
    assert_close(first['state'], state_of(wrapper), 'state', rtol)
    for got, other, want in zip(first['parameters'], second['parameters'], model.parameters(), strict=True):
        assert torch.equal(got, other)
        assert torch.allclose(got, want.detach(), rtol=rtol, atol=rtol * float(want.detach().abs().max()))


@pytest.mark.parametrize('name', ['ew', 'pcgrad'])
def test_a_loss_that_is_not_finite_on_one_rank_is_skipped_by_all(processes, name):
    model = make_model(cls=ToyModel)
    wrapper = wrapper_of(model, name, {})
    for seed in (0, 1, 3):
        model.train_step(make_batch(WHOLE, seed), wrapper)
    for process in processes:
        result = process[f'{name}-skip']
        assert result['skipped'] == 1
        for got, want in zip(result['parameters'], model.parameters(), strict=True):
            assert torch.allclose(got, want.detach(), rtol=1e-9)


def count(module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize('case', TRACED)
def test_little_is_reduced_and_while_the_next_task_goes_backward(processes, case):
    """At the parameters a row as soon as it is complete; at Z the Gramian, and every gradient once as without a method.

    GradDrop at Z reduces the sums of its algorithm, one row per task of a sample's size.
    """
    model, events = make_model(), processes[0][f'{case}-trace']
    encoder, heads = count(model.encoder), count(model.heads)
    reduced = [size for what, size in events if what == 'reduce']
    flags = 3 * len(list(model.parameters())) + 1 + 2 * len(model.tasks)  # what is used, what is not finite
    if is_at_parameters(case):
        order = [what for what, _ in events if what in ('grad', 'start', 'wait')]
        assert order == ['grad', 'start'] * 3 + ['wait'] * 3
        assert [size for what, size in events if what == 'start'] == [encoder] * 3
        assert heads <= sum(reduced) <= heads + flags
    else:
        at_z = 3 * 4 * 6 * 5 if case == 'graddrop' else 3 * 3
        assert reduced.count(at_z) == 1 and not [what for what, _ in events if what == 'start']
        assert encoder + heads < sum(reduced) <= encoder + heads + at_z + flags
