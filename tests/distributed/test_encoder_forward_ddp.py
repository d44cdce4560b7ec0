"""Two processes with samples of every task on each: the losses are those of one process with all of them."""

import torch
from torch.nn.parallel import DistributedDataParallel

from tests.distributed.launch import run_processes
from tests.models.harness import build, make_batch
from tests.models.toy import PlainEncoder

MODES = ('per_task', 'concat')
# The second process has other numbers of samples.
OWNERS = (('a', 'a', 'b', 'c'), ('a', 'b', 'b', 'b', 'c', 'c'))


def gradients(model, parameters, images, samples):
    losses = model(images, samples, mode='loss')
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    values = {key: value.detach() for key, value in losses.items()}
    return values, {name: parameter.grad for name, parameter in parameters}


def split(rank):
    images, samples = make_batch(sum(OWNERS, ()))
    rows = slice(0, len(OWNERS[0])) if rank == 0 else slice(len(OWNERS[0]), None)
    return images[rows], samples[rows]


def on_rank(rank):
    found = {}
    for mode in MODES:
        model = DistributedDataParallel(build(mode, PlainEncoder))
        found[mode] = gradients(model, list(model.module.named_parameters()), *split(rank))
    return found


def test_two_processes_are_one():
    ranks = run_processes(on_rank)
    for mode in MODES:
        model = build(mode, PlainEncoder)
        losses, expected = gradients(model, list(model.named_parameters()), *make_batch(sum(OWNERS, ())))
        for key, value in losses.items():
            torch.testing.assert_close(sum(found[mode][0][key] for found in ranks) / 2, value, rtol=1e-12, atol=0)
        for found in ranks:
            for name, gradient in expected.items():
                torch.testing.assert_close(found[mode][1][name], gradient, rtol=1e-9, atol=1e-14)
