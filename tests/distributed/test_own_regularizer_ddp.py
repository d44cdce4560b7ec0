"""The regulariser of CONTRIBUTING.md, as a file of another repository: two processes, low precision, accumulation."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from mmengine.model import MMDistributedDataParallel

from mmrepmtl.engine import MultiTaskOptimWrapper
from tests.distributed.launch import run_processes
from tests.engine.toy import ToyModel, make_batch, make_model, max_difference, split

TEXT = (Path(__file__).resolve().parents[2] / 'CONTRIBUTING.md').read_text()
CODE = re.search(r'This one is `steep_losses\.py`:\n\n```python\n(.*?)```', TEXT, re.S)[1]
SETTINGS = dict(regularizers=[dict(type='SteepLosses', weight=0.01, warmup=3)], diagnostics_interval=1)
AGGREGATED = dict(SETTINGS, aggregator=dict(type='PCGrad'))
#: So small that the gradients at Z are zeros in float16 unless they are scaled; the learning rate makes up for it.
TINY = 1e-5


class SizedModel(ToyModel):
    """Normalises its losses globally, as this package's own models do: uneven batches are then exact."""

    factor = 1.0

    def forward(self, inputs, a, b, c, mode='loss'):
        size = torch.tensor(float(len(inputs)), dtype=inputs.dtype)
        torch.distributed.all_reduce(size)
        factor = self.factor * len(inputs) * torch.distributed.get_world_size() / size
        return {key: value * factor for key, value in super().forward(inputs, a, b, c).items()}


class TinyModel(SizedModel):
    factor = TINY


def batches(dtype=torch.float64) -> list[dict]:
    return [make_batch(8, seed, dtype) for seed in range(8)]


def train(rank, cls, settings, lr=0.1, dtype=torch.float64) -> dict:
    """Eight batches; this rank has five or three samples of each."""
    model = make_model(cls=cls, dtype=dtype)
    wrapper = MultiTaskOptimWrapper(torch.optim.SGD(model.parameters(), lr=lr), shared='encoder', **settings)
    wrapped = MMDistributedDataParallel(model)
    logs = [wrapped.train_step(split(batch, [5, 3])[rank], wrapper) for batch in batches(dtype)]
    return dict(
        parameters=[p.detach() for p in model.parameters()],
        sizes=[float(log['steep/size']) for log in logs],
        state=wrapper.state_dict()['multi_task']['regularizers'],
    )


def in_process(rank, folder):
    sys.path.insert(0, folder)
    importlib.import_module('steep_losses')
    low = dict(loss_scale=dict(init_scale=2.0**16), accumulative_counts=2)
    return {
        'plain': train(rank, SizedModel, SETTINGS),
        'accumulated': train(rank, SizedModel, dict(SETTINGS, accumulative_counts=2)),
        'aggregated': train(rank, SizedModel, dict(AGGREGATED, accumulative_counts=2)),
        'bf16': train(rank, TinyModel, dict(SETTINGS, precision='bf16', **low), 0.1 / TINY, torch.float32),
        'fp16': train(rank, TinyModel, dict(SETTINGS, precision='fp16', **low), 0.1 / TINY, torch.float32),
    }


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp('their_repository')
    (folder / 'steep_losses.py').write_text(CODE)
    return run_processes(in_process, str(folder))


def by_hand(accumulation: int) -> tuple[ToyModel, list[float]]:
    """One process on whole batches, without this package: the model in the end, and the penalty at each batch."""
    model, sizes = make_model(), []
    for i, batch in enumerate(batches()):
        z = model.encoder(batch['inputs'])
        losses = [
            torch.nn.functional.cross_entropy(model.heads['a'](z), batch['a']),
            (model.heads['b'](z) - batch['b']).abs().mean(),
            ((model.heads['c'](z) - batch['c']) ** 2).mean(),
        ]
        size = sum(torch.autograd.grad(loss, z, create_graph=True)[0].abs().sum() for loss in losses)
        objective = sum(losses) + 0.01 * min(1, (i // accumulation) / 3) * size
        (objective / accumulation).backward()
        sizes.append(float(size))
        if (i + 1) % accumulation == 0:
            for p in model.parameters():
                p.data -= 0.1 * p.grad
                p.grad = None
    return model, sizes


@pytest.mark.parametrize('name, accumulation', [('plain', 1), ('accumulated', 2)])
def test_two_processes_on_uneven_parts_equal_one_on_the_whole(results, name, accumulation):
    model, sizes = by_hand(accumulation)
    for result in results:
        for got, want in zip(result[name]['parameters'], model.parameters(), strict=True):
            assert torch.allclose(got, want.detach(), rtol=1e-9, atol=1e-12)
        assert result[name]['sizes'] == pytest.approx(sizes, rel=1e-9)
        assert result[name]['state'] == [dict(steps=8 // accumulation)]


def test_the_penalty_is_large_enough_to_be_seen(results):
    model, _ = by_hand(1)
    plain = make_model()
    plain.load_state_dict(dict(zip(plain.state_dict(), results[0]['plain']['parameters'], strict=True)))
    other, _ = by_hand(2)
    assert max_difference(plain, model) < 1e-9 < 1e-3 < max_difference(plain, other)


def test_under_an_aggregator_both_ranks_have_the_same(results):
    first, second = (result['aggregated'] for result in results)
    assert all(torch.equal(p, q) for p, q in zip(first['parameters'], second['parameters'], strict=True))
    assert first['state'] == second['state'] == [dict(steps=4)]


@pytest.mark.parametrize('precision, least', [('fp16', 0.999), ('bf16', 0.98)])
def test_low_precision_goes_the_way_of_full_precision(results, precision, least):
    model, sizes = by_hand(2)
    begin = torch.cat([p.detach().flatten() for p in make_model().parameters()])
    wanted = torch.cat([p.detach().flatten() for p in model.parameters()]) - begin
    for result in results:
        moved = torch.cat([p.flatten().double() for p in result[precision]['parameters']]) - begin
        assert torch.cosine_similarity(moved, wanted, dim=0) > least
        assert result[precision]['sizes'] == pytest.approx([TINY * size for size in sizes], rel=0.05)
