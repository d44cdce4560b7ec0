"""The gradients of the tasks that two processes log are those of one process on the whole batch."""

import pytest
import torch
from mmengine.model import MMDistributedDataParallel

from mmrepmtl.engine.hooks import TaskGradientsHook
from tests.distributed.harness import SizedModel
from tests.distributed.launch import run_processes
from tests.engine.gradient_log import train
from tests.engine.harness import CASES, wrap
from tests.engine.toy import make_batch, make_model, split

NAMES = ('rep-mtl', 'pcgrad')


def measure(rank: int) -> dict:
    found = {}
    for name in NAMES:
        model = make_model(cls=SizedModel)
        wrapper = wrap(model, **CASES[name][0])
        ddp = MMDistributedDataParallel(model)
        hook = TaskGradientsHook(interval=1)
        found[name] = train(ddp, wrapper, hook, 2, lambda size, seed: split(make_batch(size, seed), [5, 3])[rank])
    return found


def test_two_processes_measure_what_one_does():
    results = run_processes(measure)
    for name in NAMES:
        model = make_model()
        expected = train(model, wrap(model, **CASES[name][0]), TaskGradientsHook(interval=1), 2)
        for result in results:
            for got, want in zip(result[name], expected, strict=True):
                assert got == pytest.approx(want, rel=1e-6)
    assert torch.tensor(list(expected[0].values())).abs().min() > 1e-4
