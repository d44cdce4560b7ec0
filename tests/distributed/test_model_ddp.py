"""Two gloo processes against one process on the concatenated batch: losses and gradients of the model."""

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.distributed.launch import run_processes
from tests.models.toy import ALL_TASKS, build_model, make_images, make_sample

DOUBLE = torch.float64
#: Samples of each rank, {sample: targets that it lacks}: unequal batches, unequal numbers of valid pixels.
SHARDS = {
    # depth is absent from rank 0, kind from rank 1
    'absent_on_one_rank': ({0: ['depth'], 1: ['depth', 'normal'], 2: ['depth']}, {3: ['kind'], 4: ['kind', 'pose']}),
    # normal is absent everywhere
    'absent_everywhere': ({0: ['normal'], 1: ['normal', 'semseg']}, {2: ['normal'], 3: ['normal'], 4: ['normal']}),
    'all_labelled': ({0: []}, {1: [], 2: [], 3: []}),
}
#: (shards, find_unused_parameters)
CASES = [
    ('absent_on_one_rank', False),
    ('absent_on_one_rank', True),
    ('absent_everywhere', False),
    ('all_labelled', False),
]


def run_losses(model, shard):
    samples = [make_sample(index, missing=missing, dtype=DOUBLE) for index, missing in shard.items()]
    return model(make_images(shard, dtype=DOUBLE), samples, mode='loss')


def gradients_of(model, losses):
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def count_collectives(calls):
    original = dist.all_reduce

    def counted(*arguments, **keywords):
        calls.append(1)
        return original(*arguments, **keywords)

    dist.all_reduce = counted


def train_all_cases(rank: int) -> dict:
    """Runs all cases in one pair of processes: starting one takes longer than any case."""
    calls: list[int] = []
    count_collectives(calls)
    results = {}
    for case, find_unused in CASES:
        model = DistributedDataParallel(build_model(seed=rank).double(), find_unused_parameters=find_unused)
        calls.clear()
        losses = run_losses(model, SHARDS[case][rank])
        num_collectives = len(calls)
        results[case, find_unused] = dict(
            gradients=gradients_of(model.module, losses),
            num_collectives=num_collectives,
            losses={key: value.detach() for key, value in losses.items()},
        )
    return results


@pytest.fixture(scope='module')
def results_by_rank():
    return run_processes(train_all_cases)


@pytest.mark.parametrize(('case', 'find_unused'), CASES)
def test_two_ranks_equal_one_process_on_the_concatenated_batch(case, find_unused, results_by_rank):
    ranks = [results[case, find_unused] for results in results_by_rank]
    model = build_model(seed=0).double()
    losses = run_losses(model, SHARDS[case][0] | SHARDS[case][1])
    for key, value in losses.items():
        mean = torch.stack([rank['losses'][key] for rank in ranks]).mean(dim=0)
        torch.testing.assert_close(mean, value.detach(), rtol=1e-12, atol=1e-12, msg=key)
    absent = 'normal' if case == 'absent_everywhere' else None
    for rank in ranks:
        assert rank['num_collectives'] == 1
        for task in ALL_TASKS:
            assert rank['losses'][f'{task}.labelled'].item() == (task != absent)
    for name, gradient in gradients_of(model, losses).items():
        for rank in ranks:
            torch.testing.assert_close(rank['gradients'][name], gradient, rtol=1e-10, atol=1e-12, msg=name)
    if case == 'absent_on_one_rank':
        assert ranks[0]['losses']['depth.loss_l1'] == 0
        assert ranks[1]['losses']['depth.loss_l1'] > 0


def test_one_process_needs_no_collective(monkeypatch):
    def refuse(*arguments, **keywords):
        raise AssertionError('a collective outside torch.distributed')

    monkeypatch.setattr(dist, 'all_reduce', refuse)
    assert run_losses(build_model().double(), SHARDS['all_labelled'][0])
