"""Ranks that bring different things to a collective: all of them raise the same error, and can go on."""

import re

import pytest
import torch
import torch.distributed as dist
from mmengine.model import MMDistributedDataParallel
from torch import nn

from mmrepmtl.engine import MultiTaskOptimWrapper
from mmrepmtl.methods.collectives import Ranks, own_group
from mmrepmtl.methods.rep_mtl import RepMTL
from mmrepmtl.models import MultiTaskModel
from mmrepmtl.models.heads import DepthHead
from mmrepmtl.structures import MultiTaskDataSample
from mmrepmtl.utils.agreement import NamedSum, differences, ranks
from tests.distributed.launch import run_processes
from tests.engine.toy import ToyModel, make_batch, make_model, split

EW = dict(weighting=dict(type='EqualWeighting'))
AT_Z = dict(aggregator=dict(type='PCGrad', level='representation'))
PCGRAD = dict(aggregator=dict(type='PCGrad'))
REP_MTL = dict(loss_transform='log', regularizers=[dict(type='RepMTL')])
GRADDROP = dict(aggregator=dict(type='GradDrop', level='representation'))


class Odd(ToyModel):
    """Returns what ``change(model, losses, rank)`` makes of its losses; ``cut`` crops its input on the last rank."""

    change, cut = None, False

    def forward(self, inputs, a, b, c, mode='loss'):
        rank = dist.get_rank() if dist.is_initialized() else 0
        if self.cut and rank:
            inputs, a, b, c = (x[..., :-1] for x in (inputs, a, b, c))
        losses = super().forward(inputs, a, b, c)
        return losses if self.change is None else type(self).change(self, losses, rank)


def extra(model, losses, rank):
    return losses | ({'aux.loss': losses['a.loss']} if rank else {})


def missing_task(model, losses, rank):
    return {key: value for key, value in losses.items() if not (rank and key.startswith('c'))}


def second_term(model, losses, rank):
    return losses | ({} if rank else {'b.loss_more': losses['b.loss']})


def wrong_type(model, losses, rank):
    return losses | ({'b.loss': 0.0} if rank else {})


def other_flag(model, losses, rank):
    return losses | ({'c.labelled': torch.tensor(1.0)} if rank else {})


def other_dtype(model, losses, rank):
    return {key: value.float() if rank else value for key, value in losses.items()}


def reversed_order(model, losses, rank):
    return dict(reversed(losses.items())) if rank else losses


def local_flags(model, losses, rank):
    """Each rank says what it knows: all labels of ``c`` are on the first."""
    zero = torch.tensor(float(not rank))
    return losses | {'c.loss': losses['c.loss'] * 2 * zero, 'c.labelled': zero}


def from_second_step(model, losses, rank):
    """A loss that all ranks add from the second step on."""
    model.steps = getattr(model, 'steps', 0) + 1
    return losses if model.steps == 1 else losses | {'aux.loss': losses['a.loss']}


def late(model, losses, rank):
    """As ``extra``, after a step that went well."""
    model.steps = getattr(model, 'steps', 0) + 1
    return losses if model.steps == 1 else extra(model, losses, rank)


def outcome(rank, change, settings, steps=2, then=None, **attributes):
    """The logs, or the error that stopped training; ``then`` is what the model does in one more step."""
    model = make_model(cls=type('Model', (Odd,), dict(change=change, **attributes)))
    wrapper = MultiTaskOptimWrapper(
        torch.optim.SGD(model.parameters(), lr=0.1), shared='encoder', extra_losses='add', **settings
    )
    wrapped = MMDistributedDataParallel(model) if dist.is_initialized() else model
    sizes = [5, 3] if dist.is_initialized() else [8]
    found = dict(error=None, logs=[])
    try:
        for seed in range(steps):
            log = wrapped.train_step(split(make_batch(8, seed), sizes)[rank], wrapper)
            found['logs'].append({key: float(value.detach()) for key, value in log.items()})
    except ValueError as error:
        found['error'] = str(error)
    if then is not None:
        type(model).change = then
        type(model).cut = False
        wrapped.train_step(split(make_batch(8, 9), sizes)[rank], wrapper)
    found['parameters'] = [p.detach().clone() for p in model.parameters()]
    return found


#: name: (change, settings, what the error of every rank says)
REFUSED = {
    'extra': (extra, EW, "the ranks bring different losses: 'aux.loss' is on rank 1 and not on rank 0. Every rank has"),
    'late': (late, REP_MTL, "'aux.loss' is on rank 1 and not on rank 0"),
    'missing task': (missing_task, EW, "on rank 1: .*the prefix 'c.' of task 'c' matches no loss"),
    'second term': (second_term, PCGRAD, "'b.loss_more' is on rank 0 and not on rank 1"),
    'wrong type': (wrong_type, PCGRAD, "on rank 1: .*loss 'b.loss' is neither a tensor .* float"),
    'other flag': (other_flag, EW, "'c labelled' is on rank 1 and not on rank 0"),
    'other dtype': (other_dtype, EW, 'dtype: torch.float64 on rank 0, torch.float32 on rank 1'),
}
CUT = {
    'graddrop at Z': (GRADDROP, r'Z: \(4, 6, 5\) torch.float64 on rank 0, \(4, 6, 4\) torch.float64 on rank 1'),
}


class TwoTerms(DepthHead):
    """Leaves a term out on the second rank, or fails there."""

    fails = False

    def compute_terms(self, output, target):
        terms = super().compute_terms(output, target)
        if not dist.get_rank():
            return terms | dict(second=next(iter(terms.values())))
        if self.fails:
            raise ValueError('this picture has no depth')
        return terms


def model_errors():
    """Our own model: heads with other terms on the second rank, and one that fails there."""
    encoder = nn.Conv2d(3, 4, 3, padding=1)
    encoder.channels = [4]
    torch.manual_seed(0)
    head = TwoTerms(nn.Conv2d(4, 1, 1), target='depth')
    model = MultiTaskModel(encoder, dict(depth=head))
    sample = MultiTaskDataSample(metainfo=dict(img_shape=(4, 4)))
    sample.set_target('depth', torch.ones(1, 4, 4))
    errors = []
    for fails in (False, True):
        head.fails = fails
        with pytest.raises(ValueError) as error:
            model(torch.randn(1, 3, 4, 4), [sample], mode='loss')
        errors.append(str(error.value))
    return errors


def rep_mtl_errors(rank):
    """RepMTL in a loop of one's own: another number of levels, and of channels, on the second rank."""
    errors = []
    for levels, channels in ((1 + rank, 4), (1, 4 + rank)):
        z = [torch.randn(4, channels, 3, 3, requires_grad=True) for _ in range(levels)]
        losses = {task: sum((level**2).mean() for level in z) + i for i, task in enumerate('ab')}
        with pytest.raises(ValueError) as error:
            RepMTL()(losses, z)
        errors.append(str(error.value))
    return errors


def bare_sums(rank):
    """The sum itself: one dtype each time, all ranks change names at once, and an error as the first thing."""
    add = NamedSum('Test', 'numbers', 'Advice.')
    first = add({'a': torch.tensor(1.0 + rank), 'b': torch.tensor(2.0)})
    second = add({'c': torch.tensor(float('nan') if rank else 1.0)})
    third = add({'c': torch.tensor(float('inf'))})
    early = NamedSum('Test', 'numbers', 'Advice.')
    with pytest.raises(ValueError, match='on rank 0: no numbers'):
        early({}, ValueError('no numbers')) if not rank else early({'a': torch.tensor(1.0)})
    with pytest.raises(ValueError, match='^none$'):
        early({}, ValueError('none'))
    # The error of one rank leaves nothing behind.
    fourth = early({'a': torch.tensor(1.0)})
    return [{key: float(value) for key, value in found.items()} for found in (first, second, third, fourth)]


def work(rank):
    torch.manual_seed(rank)
    group = own_group()
    return dict(
        refused={
            name: outcome(rank, change, settings, then=reversed_order)
            for name, (change, settings, _) in REFUSED.items()
        },
        cut={name: outcome(rank, None, settings, then=reversed_order, cut=True) for name, (settings, _) in CUT.items()},
        cut_gramian=outcome(rank, None, AT_Z, cut=True)['error'],
        order=outcome(rank, reversed_order, EW),
        flags={
            name: outcome(rank, local_flags, settings)
            for name, settings in (('ew', EW), ('pcgrad', PCGRAD), ('rep-mtl', REP_MTL))
        },
        together=outcome(rank, from_second_step, EW, steps=3),
        model=model_errors(),
        rep_mtl=rep_mtl_errors(rank),
        sums=bare_sums(rank),
        ranks=Ranks(group).sum_and_sizes(torch.zeros(1), 3 + rank, dict(n=2)),
    )


@pytest.fixture(scope='module')
def processes():
    return run_processes(work)


@pytest.mark.parametrize('name', REFUSED)
def test_every_rank_raises_what_one_rank_did_wrong(processes, name):
    found = [process['refused'][name] for process in processes]
    assert found[0]['error'] == found[1]['error']
    assert found[0]['error'] is not None and _matches(REFUSED[name][2], found[0]['error'])
    # The group is whole: a later step ends, with equal weights.
    assert all(torch.equal(p, q) for p, q in zip(found[0]['parameters'], found[1]['parameters'], strict=True))
    assert len(found[0]['logs']) == (1 if name == 'late' else 0)


@pytest.mark.parametrize('name', CUT)
def test_maps_of_two_sizes_are_refused_where_gradients_of_them_are_summed(processes, name):
    found = [process['cut'][name] for process in processes]
    assert found[0]['error'] == found[1]['error'] and _matches(CUT[name][1], found[0]['error'])


def test_maps_of_two_sizes_are_fine_where_only_gramians_are_summed(processes):
    assert [process['cut_gramian'] for process in processes] == [None, None]


def test_the_order_of_the_losses_makes_no_difference(processes):
    first, second = (process['order'] for process in processes)
    assert first['error'] is None and first['logs'] == second['logs']
    single = outcome(0, None, EW)
    # Unequal parts: for a model whose losses are means, the mean of the ranks' means is what is logged.
    halves = [outcome_of_part(rank) for rank in range(2)]
    for key in ('raw/a', 'raw/b', 'raw/c'):
        assert first['logs'][0][key] == pytest.approx((halves[0][key] + halves[1][key]) / 2)
    assert set(first['logs'][0]) == set(single['logs'][0])


def outcome_of_part(rank):
    model = make_model()
    wrapper = MultiTaskOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), shared='encoder', **EW)
    return {k: float(v) for k, v in model.train_step(split(make_batch(8, 0), [5, 3])[rank], wrapper).items()}


@pytest.mark.parametrize('name', ['ew', 'pcgrad', 'rep-mtl'])
def test_a_task_is_labelled_if_any_rank_says_so(processes, name):
    first, second = (process['flags'][name] for process in processes)
    assert first['error'] is None and second['error'] is None
    assert first['logs'] == second['logs'] and first['logs'][0]['weight/c'] > 0
    assert all(torch.equal(p, q) for p, q in zip(first['parameters'], second['parameters'], strict=True))


def test_losses_may_change_on_all_ranks_together(processes):
    for process in processes:
        assert process['together']['error'] is None
        assert ['raw/aux.' in ' '.join(log) for log in process['together']['logs']] == [False, True, True]


def test_our_own_model_names_a_head_whose_terms_differ_or_that_fails(processes):
    for other, fails in (process['model'] for process in processes):
        assert other.startswith('MultiTaskModel: the ranks bring different loss terms: ')
        assert "'depth.second' is on rank 0 and not on rank 1" in other
        assert fails == 'on rank 1: this picture has no depth'


def test_rep_mtl_refuses_another_representation_on_one_rank(processes):
    for levels, channels in (process['rep_mtl'] for process in processes):
        assert 'number of levels of Z must be the same on all ranks, got [1, 2]' in levels
        assert 'channels of Z must be the same on all ranks, got [4, 5]' in channels


def test_sums(processes):
    for process in processes:
        first, second, third, fourth = process['sums']
        assert first == dict(a=3.0, b=4.0) and third == dict(c=float('inf')) and fourth == dict(a=2.0)
        assert second['c'] != second['c']
        assert process['ranks'][1] == [3, 4]


def test_one_process_reduces_nothing():
    value = torch.tensor(2.0, requires_grad=True)
    found = NamedSum('Test', 'numbers', '')({'b': value, 'a': value * 2})
    assert found == dict(b=2.0, a=4.0) and not any(v.requires_grad for v in found.values())
    with pytest.raises(ValueError, match='^mine$'):
        NamedSum('Test', 'numbers', '')({}, ValueError('mine'))


def test_differences_of_many_ranks_stay_short():
    described = [(('a', 'b'), ())] * 20 + [(('a',), (('Z', '3 levels'),))]
    text = differences(described)
    assert text == (
        "'b' is on ranks 0, 1, 2, 3, 4, 5, 6, 7 and 12 more and not on rank 20; "
        'Z: nothing on ranks 0, 1, 2, 3, 4, 5, 6, 7 and 12 more, 3 levels on rank 20'
    )
    assert ranks([3]) == 'rank 3'


def _matches(pattern: str, text: str) -> bool:
    return re.search(pattern, text, re.DOTALL) is not None
