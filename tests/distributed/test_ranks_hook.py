"""Ranks that would not meet in every iteration do not start, and stop together."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from mmengine.logging import MMLogger
from mmengine.runner import EpochBasedTrainLoop
from torch import nn

from mmrepmtl.engine.hooks import RanksHook
from tests.distributed.launch import run_processes


class Loop(EpochBasedTrainLoop):
    """A loop of which only the numbers matter."""

    def __init__(self, batches: int, epochs: int) -> None:
        self.dataloader, self._max_iters, self.stop_training = range(batches), batches * epochs, False


def make_runner(batches=5, epochs=2, iteration=0, weight=1.0, frozen=False):
    model = nn.Linear(2, 2)
    for p in model.parameters():
        nn.init.constant_(p, weight)
    model.bias.requires_grad_(not frozen)
    logger = MMLogger.get_instance('ranks_hook')
    return SimpleNamespace(model=model, train_loop=Loop(batches, epochs), iter=iteration, logger=logger)


#: What the second rank has otherwise, and what both say.
DIFFERENCES = {
    'batches': (dict(batches=4, epochs=2.5), 'batches of an epoch: 5 on rank 0, 4 on rank 1. Give every rank as many'),
    'length': (dict(epochs=3), 'length of the training: 10 on rank 0, 15 on rank 1'),
    'resumed': (dict(iteration=5), 'iterations so far: 0 on rank 0, 5 on rank 1. A resumed run reads its checkpoint'),
    'weights': (dict(weight=1.01), 'sum of the weights: 6.0 on rank 0, 6.0'),
    'frozen': (dict(frozen=True), 'trainable parameters: 2 tensors'),
    'rounding': (dict(weight=1 + 1e-7), None),
    'nothing': (dict(), None),
}


def refused(rank, changes):
    try:
        RanksHook().before_train(make_runner(**(changes if rank else {})))
    except ValueError as error:
        return str(error)
    return None


def stopping(who, after_val):
    """Whether the ranks stop if those in ``who`` want to."""
    runner, hook = make_runner(iteration=5), RanksHook()
    runner.train_loop.stop_training = dist.get_rank() in who
    hook.after_val_epoch(runner) if after_val else hook.after_train_epoch(runner)
    return runner.train_loop.stop_training


def work(rank):
    return dict(
        refused={name: refused(rank, changes) for name, (changes, _) in DIFFERENCES.items()},
        stopping=[stopping(who, after_val) for who in ((), (0,), (1,), (0, 1)) for after_val in (False, True)],
    )


@pytest.fixture(scope='module')
def processes():
    return run_processes(work)


@pytest.mark.parametrize('name', DIFFERENCES)
def test_all_ranks_say_what_differs(processes, name):
    first, second = (process['refused'][name] for process in processes)
    assert first == second
    expected = DIFFERENCES[name][1]
    assert first is None if expected is None else expected in first


def test_if_one_stops_all_stop(processes):
    for process in processes:
        assert process['stopping'] == [False] * 2 + [True] * 6


def test_one_process_compares_nothing():
    hook, runner = RanksHook(), make_runner()
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)
    hook.after_train_epoch(runner)
    assert not runner.train_loop.stop_training and not torch.distributed.is_initialized()
