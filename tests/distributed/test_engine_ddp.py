"""Two processes on parts of the batch against one hand-written process on the whole of it."""

import copy

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from torch import nn

from mmrepmtl.engine import MultiTaskOptimWrapper
from tests.distributed.harness import SizedModel
from tests.distributed.launch import run_processes
from tests.engine import reference
from tests.engine.harness import CASES
from tests.engine.toy import ToyModel, make_batch, make_model, max_difference, split


class HalfLabelled(SizedModel):
    """All labels of the global batch lie on the first rank; the other's losses are zeros connected to the graph."""

    def forward(self, inputs, a, b, c, mode='loss'):
        factor = 0 if torch.distributed.get_rank() else 2
        return {key: value * factor for key, value in ToyModel.forward(self, inputs, a, b, c).items()}


class UnusedModel(SizedModel):
    """Holds a parameter that no loss depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(3))


def train(rank, cls, sizes, settings, ddp, seeds, whole=8, dtype=torch.float64, cut=None):
    """Trains; with ``cut`` everything is rebuilt from the state after that many steps, as a resumed run does."""

    def build():
        model = make_model(cls=cls, dtype=dtype)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return (
            model,
            MMDistributedDataParallel(model, **ddp),
            MultiTaskOptimWrapper(optimizer, shared='encoder', **settings),
        )

    model, wrapped, wrapper = build()
    logs = []
    for i, seed in enumerate(seeds):
        if i == cut:
            saved = copy.deepcopy((model.state_dict(), wrapper.state_dict()))
            model, wrapped, wrapper = build()
            model.load_state_dict(saved[0])
            wrapper.load_state_dict(saved[1])
            wrapper._inner_count = i
        part = split(make_batch(whole, seed, dtype), sizes)[rank]
        logs.append({k: float(v.detach()) for k, v in wrapped.train_step(part, wrapper).items()})
    return dict(
        parameters=[p.detach() for p in model.parameters()],
        logs=logs,
        learned=[p.detach() for p in wrapper.weighting.parameters()],
        norms={k: float(v.current()) for k, v in wrapper.message_hub.log_scalars.items()},
    )


def assert_equal_to_one_process(results, model):
    for rank, result in enumerate(results):
        for got, want in zip(result['parameters'], model.parameters(), strict=True):
            assert torch.allclose(got, want.detach(), rtol=1e-9, atol=1e-12), f'rank {rank}'


GRID = [(case, sizes, accumulation) for case in CASES for sizes in ((4, 4), (5, 3)) for accumulation in (1, 2)]
UNUSED = ['rep-mtl', 'pcgrad-rep-mtl']
LOW = {name: dict(CASES['rep-mtl'][0], precision=name, loss_scale=dict(init_scale=256.0)) for name in ('bf16', 'fp16')}
HALF = dict(CASES['pcgrad-rep-mtl'][0], diagnostics_interval=1)
RESUMED = [dict(CASES['pcgrad-rep-mtl'][0]), dict(weighting=dict(type='UncertaintyWeighting'))]
STEPS = dict(type='RepMTL', lambda_tsr=0.5, lambda_csa=0.7, interval=2, warmup_iters=3)
OTHERS = [
    dict(loss_transform='log', regularizers=[STEPS], accumulative_counts=2),
    dict(weighting=dict(type='UncertaintyWeighting'), aggregator=dict(type='PCGrad')),
    dict(aggregator=dict(type='PCGrad', level='representation')),
    dict(weighting=dict(type='UncertaintyWeighting')),
]


def train_all(rank):
    """Everything in one pair of processes: starting them costs more than all of the training."""
    return dict(
        grid=[
            train(rank, SizedModel, list(sizes), dict(CASES[case][0], accumulative_counts=k), {}, range(3 * k))
            for case, sizes, k in GRID
        ],
        unused=[
            train(rank, UnusedModel, [5, 3], CASES[case][0], dict(find_unused_parameters=True), range(3))
            for case in UNUSED
        ],
        others=[train(rank, SizedModel, [5, 3], settings, {}, range(3)) for settings in OTHERS],
        low={
            name: train(rank, SizedModel, [4, 4], settings, {}, range(2), dtype=torch.float32)
            for name, settings in LOW.items()
        },
        empty=train(rank, HalfLabelled, [4, 4], HALF, {}, range(3)),
        resumed=[train(rank, SizedModel, [5, 3], settings, {}, range(4), cut=2) for settings in RESUMED],
        uncut=[train(rank, SizedModel, [5, 3], settings, {}, range(4)) for settings in RESUMED],
        static_graph=try_static_graph(rank),
    )


@pytest.fixture(scope='module')
def processes():
    return run_processes(train_all)


@pytest.mark.parametrize('i', range(len(GRID)), ids=[f'{c}-{s[0]}+{s[1]}-x{k}' for c, s, k in GRID])
def test_two_processes_equal_one(processes, i):
    case, _, k = GRID[i]
    results = [process['grid'][i] for process in processes]
    model = make_model()
    batches = [make_batch(8, seed) for seed in range(3 * k)]
    values = reference.train(model, [batches[i : i + k] for i in range(0, len(batches), k)], **CASES[case][1])
    assert_equal_to_one_process(results, model)
    for result in results:
        assert [log['loss'] for log in result['logs']] == pytest.approx(values, rel=1e-6)
    assert results[0]['logs'] == results[1]['logs']
    assert results[0]['norms'] == results[1]['norms']


@pytest.mark.parametrize('i', range(len(UNUSED)), ids=UNUSED)
def test_find_unused_parameters(processes, i):
    model = make_model(cls=UnusedModel)
    reference.train(model, [[make_batch(8, seed)] for seed in range(3)], **CASES[UNUSED[i]][1])
    assert_equal_to_one_process([process['unused'][i] for process in processes], model)


@pytest.mark.parametrize('i', range(len(OTHERS)))
def test_representation_level_and_learned_weights(processes, i):
    model = make_model()
    wrapper = MultiTaskOptimWrapper(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), shared='encoder', **OTHERS[i]
    )
    for seed in range(3):
        model.train_step(make_batch(8, seed), wrapper)
    results = [process['others'][i] for process in processes]
    assert_equal_to_one_process(results, model)
    for result in results:
        for got, want in zip(result['learned'], wrapper.weighting.parameters(), strict=True):
            assert torch.allclose(got, want.detach(), rtol=1e-6)


def try_static_graph(rank):
    model = make_model()
    wrapped = MMDistributedDataParallel(model, static_graph=True)
    wrapper = MultiTaskOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), shared='encoder')
    with pytest.raises(RuntimeError, match='static_graph=True.* leaves gradients unsynchronised'):
        wrapped.train_step(make_batch(4, rank), wrapper)
    return True


@pytest.mark.parametrize('precision', LOW)
def test_low_precision_follows_one_process(processes, precision):
    model = make_model(dtype=torch.float32)
    start = make_model(dtype=torch.float32)
    wrapper = MultiTaskOptimWrapper(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), shared='encoder', **LOW[precision]
    )
    for seed in range(2):
        model.train_step(make_batch(8, seed, torch.float32), wrapper)
    moved = max_difference(model, start)
    first, second = (process['low'][precision]['parameters'] for process in processes)
    assert all(torch.equal(p, q) for p, q in zip(first, second, strict=True))
    got = make_model(dtype=torch.float32)
    torch.nn.utils.vector_to_parameters(torch.nn.utils.parameters_to_vector(first), got.parameters())
    # The halves are rounded apart; bfloat16 keeps 8 bits, float16 11.
    assert max_difference(model, got) < (0.1 if precision == 'bf16' else 0.02) * moved


def test_a_rank_without_labels_takes_part_in_everything(processes):
    first, second = (process['empty'] for process in processes)
    assert all(torch.equal(p, q) for p, q in zip(first['parameters'], second['parameters'], strict=True))
    assert 'train/penalty/grad_ratio' in first['norms'] and first['norms'] == second['norms']


@pytest.mark.parametrize('i', range(len(RESUMED)))
def test_resumed_processes_equal_uninterrupted_ones(processes, i):
    for process in processes:
        cut, uncut = process['resumed'][i], process['uncut'][i]
        assert all(torch.equal(p, q) for p, q in zip(cut['parameters'], uncut['parameters'], strict=True))


def test_static_graph_is_refused(processes):
    assert [process['static_graph'] for process in processes] == [True, True]
