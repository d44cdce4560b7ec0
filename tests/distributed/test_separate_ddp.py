"""Separate optimizers and exact zeros in two processes, against one process on the whole batch."""

import copy

import pytest
import torch
from mmengine.model import MMDistributedDataParallel

from mmrepmtl.engine import SeparateOptimizers
from tests.distributed.launch import run_processes
from tests.engine.overlays import ready
from tests.engine.toy import Masked, make_model, masked_batch, max_difference, split

OPTIMIZERS = dict(
    encoder=dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9), clip_grad=dict(max_norm=0.5)),
    heads=dict(optimizer=dict(type='SGD', lr=0.02)),
)
CASES = dict(
    uw=ready('uw'), pcgrad=ready('pcgrad'), mtadam=ready('mtadam'), z=ready('mgda@representation'), gls=ready('gls')
)


class Silent(Masked):
    """Does not tell which tasks have no label: their losses are exactly 0 on all ranks."""

    def forward(self, *args, **kwargs):
        return {key: value for key, value in super().forward(*args, **kwargs).items() if 'labelled' not in key}


def train(rank, cases, ddp=True):
    found = {}
    for name, settings in cases.items():
        model = make_model(cls=Silent if name == 'gls' else Masked)
        wrapped = MMDistributedDataParallel(model) if ddp else model
        optimizers = copy.deepcopy(OPTIMIZERS)
        if name == 'mtadam':
            optimizers['encoder'].pop('clip_grad')
        cfg = dict(optimizers=optimizers, shared='encoder', accumulative_counts=2, **copy.deepcopy(settings))
        wrapper = SeparateOptimizers(cfg)(wrapped)
        for seed in range(10):
            batch = masked_batch(8, seed)
            wrapped.train_step(split(batch, [4, 4])[rank] if ddp else batch, wrapper)
        found[name] = [p.detach() for p in model.parameters()]
    return found


@pytest.mark.slow
def test_two_processes_equal_one():
    wanted = train(0, CASES, ddp=False)
    for result in run_processes(train, CASES):
        for name in CASES:
            pairs = zip(result[name], wanted[name], strict=True)
            assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-9) for a, b in pairs), name
            assert max_difference(make_model(), make_model(seed=1)) > 0
