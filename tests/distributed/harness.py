"""Models and runs for two processes."""

import copy

import pytest
import torch
from mmengine.model import MMDistributedDataParallel

from mmrepmtl.engine import MultiTaskOptimWrapper
from tests.engine.overlays import ready
from tests.engine.toy import Masked, ToyModel, make_model, masked_batch, split


class SizedModel(ToyModel):
    """Normalises its losses globally, as this package's own models do: uneven batches are then exact."""

    def forward(self, inputs, a, b, c, mode='loss'):
        size = torch.tensor(float(len(inputs)), dtype=inputs.dtype)
        torch.distributed.all_reduce(size)
        factor = len(inputs) * torch.distributed.get_world_size() / size
        return {key: value * factor for key, value in super().forward(inputs, a, b, c).items()}


STEPS, SIZES, WHOLE = 5, [5, 3], 8


def wrapper_of(model, name, changes):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return MultiTaskOptimWrapper(optimizer, shared='encoder', **ready(name, **changes))


def state_of(wrapper) -> dict:
    state = wrapper.state_dict()['multi_task']
    return copy.deepcopy({key: state[key] for key in ('weighting', 'aggregator', 'regularizers')})


def train(rank, name, changes):
    """On batches of which one rank or both lack the labels of a task now and then."""
    model = make_model(cls=Masked)
    wrapped = MMDistributedDataParallel(model)
    wrapper = wrapper_of(model, name, changes)
    for seed in range(STEPS * wrapper._accumulative_counts):
        wrapped.train_step(split(masked_batch(WHOLE, seed), SIZES)[rank], wrapper)
    return dict(parameters=[p.detach() for p in model.parameters()], state=state_of(wrapper))


def assert_close(got, want, where: str, rtol: float) -> None:
    """Compares nested states; integers and generators exactly."""
    if isinstance(want, dict):
        assert set(got) == set(want), where
        for key in want:
            assert_close(got[key], want[key], f'{where}.{key}', rtol)
    elif isinstance(want, (list, tuple)):
        assert len(got) == len(want), where
        for i, pair in enumerate(zip(got, want, strict=True)):
            assert_close(*pair, f'{where}[{i}]', rtol)
    elif isinstance(want, torch.Tensor) and want.is_floating_point():
        scale = float(want.nan_to_num().abs().max()) if want.numel() else 0.0
        assert torch.allclose(got, want, rtol=rtol, atol=rtol * scale, equal_nan=True), where
    elif isinstance(want, torch.Tensor):
        assert torch.equal(got, want), where
    else:
        assert got == pytest.approx(want, rel=rtol, nan_ok=True) if isinstance(want, float) else got == want, where
