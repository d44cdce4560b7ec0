"""Runs a second forward pass on the same batch after the step, for methods that need to know how each loss fell."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmrepmtl.engine.task_losses import TaskLosses
from mmrepmtl.methods.weighting import Weighting


class _Call(NamedTuple):
    """A forward pass that can be repeated; ``random_states`` are those that it started from."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    random_states: list[Tensor]


class SecondLook:
    """Remembers the calls of a window's forward passes and repeats them without gradients.

    The repetition draws the same random numbers (dropout masks) as the first pass, so that the losses differ by the
    step alone. Buffers (BatchNorm's running statistics) and random states are put back afterwards.
    """

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._random: list[Tensor] = []

    def before_forward(self) -> None:
        """Notes the random states that the forward pass starts from."""
        self._random = _random_states()

    def after_forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Notes a call of the model inside DistributedDataParallel."""
        self._calls.append(_Call(model, args, kwargs, self._random))

    def repeat(self, weighting: Weighting, collect: Callable[[Mapping[str, Any]], TaskLosses]) -> None:
        """Repeats the calls and gives the weighting the mean losses; ``collect`` reads a model's loss dict."""
        calls, self._calls = self._calls, []
        now = _random_states()
        seen: list[TaskLosses] = []
        for model, args, kwargs, states in calls:
            buffers = [buffer.clone() for buffer in model.buffers()]
            _set_random_states(states)
            with torch.no_grad():
                seen.append(collect(model(*args, **kwargs)))
                for buffer, before in zip(model.buffers(), buffers, strict=True):
                    buffer.copy_(before)
        _set_random_states(now)
        labelled_T = torch.stack([losses.labelled_T for losses in seen]).sum(0)
        losses_T = torch.stack([torch.where(losses.labelled_T, losses.losses_T, 0) for losses in seen]).sum(0)
        weighting.after_step(losses_T / labelled_T.clamp(min=1), labelled_T > 0)

    def forget(self) -> None:
        """Drops the calls of a window whose step is skipped."""
        self._calls = []


def _random_states() -> list[Tensor]:
    states = [torch.get_rng_state()]
    return states + [torch.cuda.get_rng_state()] if torch.cuda.is_available() else states


def _set_random_states(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1])
