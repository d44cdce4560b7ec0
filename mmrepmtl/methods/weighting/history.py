"""The common parts of the loss weightings: checks of the losses, and state with one entry per task.

Dimensions: T tasks.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .base import Weighting


def labelled_mask(losses_T: Tensor, labelled_T: Tensor | None) -> Tensor:
    """The tasks that are labelled, (T,) bool, where None stands for all."""
    return torch.ones_like(losses_T, dtype=torch.bool) if labelled_T is None else labelled_T


def masked_softmax(logits_T: Tensor, mask_T: Tensor) -> Tensor:
    """The softmax over the tasks in the mask, (T,); 0 elsewhere, and everywhere if the mask is empty."""
    softmax_T = torch.zeros_like(logits_T)
    softmax_T[mask_T] = logits_T[mask_T].softmax(0)
    return softmax_T


def weighted_sum(losses_T: Tensor, weights_T: Tensor) -> Tensor:
    """``sum_t w_t L_t`` with constant weights, in the precision of the losses."""
    return (losses_T * weights_T.detach().to(losses_T)).sum()


class LazyWeighting(Weighting):
    """Base of weightings with one entry of state per task, whose number is known only at :meth:`setup`.

    A state can be loaded before :meth:`setup`: it tells the number of tasks.
    """

    #: Name of a parameter or buffer of shape (T,).
    sized_by: str

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        entry = state_dict.get(prefix + self.sized_by)
        if entry is not None and len(entry):
            self.setup(len(entry))
        super()._load_from_state_dict(state_dict, prefix, *args)


class HistoryWeighting(LazyWeighting):
    """Base of weightings that remember losses: the mean over the micro-batches of each optimizer step.

    Each task's mean is over the micro-batches in which it is labelled. All state is float64.

    Args:
        **initial_T: Name and initial value of each buffer of shape (T,).
    """

    sized_by = 'window_sum_T'
    window_sum_T: Tensor
    window_count_T: Tensor

    def __init__(self, **initial_T: float) -> None:
        super().__init__()
        self._initial_T = dict(window_sum_T=0.0, window_count_T=0.0, **initial_T)
        for name in self._initial_T:
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))

    def setup(self, num_tasks: int) -> None:
        """Makes the buffers. Idempotent; ``forward`` does it where nobody has."""
        if len(self.window_sum_T) == 0:
            for name, value in self._initial_T.items():
                buffer = getattr(self, name)
                setattr(self, name, torch.full((num_tasks,), value, dtype=torch.float64, device=buffer.device))

    def record(self, losses_T: Tensor, mask_T: Tensor, advance: bool) -> None:
        """Adds a micro-batch, and ends the step if it is the last of one.

        Args:
            losses_T: (T,).
            mask_T: The tasks that are labelled, (T,) bool.
            advance: As in :meth:`Weighting.forward`.
        """
        self.window_sum_T += torch.where(mask_T, losses_T.detach(), 0)
        self.window_count_T += mask_T
        if advance:
            self.end_step()

    def end_step(self) -> None:
        """Calls :meth:`close_step` with the means over the micro-batches since the last step."""
        self.close_step(*self._pop_means('window'))

    def drop_window(self) -> None:
        """Forgets the micro-batches since the last step."""
        if len(self.window_sum_T):
            self._pop_means('window')

    def _pop_means(self, what: str) -> tuple[Tensor, Tensor]:
        """The means (T,) since the last call, and the tasks that have one, (T,) bool."""
        sum_T, count_T = getattr(self, f'{what}_sum_T'), getattr(self, f'{what}_count_T')
        means_T, seen_T = sum_T / count_T.clamp(min=1), count_T > 0
        sum_T.zero_()
        count_T.zero_()
        return means_T, seen_T

    def close_step(self, means_T: Tensor, seen_T: Tensor) -> None:
        """Ends an optimizer step.

        Args:
            means_T: Mean loss of each task over the step's micro-batches, (T,).
            seen_T: The tasks that were labelled in any of them, (T,) bool; the mean of the others means nothing.
        """
        raise NotImplementedError


class EpochWeighting(HistoryWeighting):
    """Base of weightings that remember mean losses of epochs: means over its steps of the steps' means.

    Args:
        interval: Number of optimizer steps that count as an epoch, for loops without epochs; None: the trainer calls
            :meth:`end_epoch`.
        **initial_T: As in :class:`HistoryWeighting`.

    Raises:
        ValueError: If ``interval`` is less than 1.
    """

    epoch_sum_T: Tensor
    epoch_count_T: Tensor

    def __init__(self, interval: int | None, **initial_T: float) -> None:
        if interval is not None and interval < 1:
            raise ValueError(f'{type(self).__name__}: interval must be at least 1 step or None, got {interval!r}')
        super().__init__(epoch_sum_T=0.0, epoch_count_T=0.0, **initial_T)
        self.interval = interval
        self.per_epoch = interval is None
        self.step_count = 0
        self.epoch_count = 0

    def close_step(self, means_T: Tensor, seen_T: Tensor) -> None:
        """Adds the step to its epoch."""
        self.epoch_sum_T += torch.where(seen_T, means_T, 0)
        self.epoch_count_T += seen_T
        self.step_count += 1
        if self.step_count == self.interval:
            self.end_epoch()

    def end_epoch(self) -> None:
        """Ends an epoch; one without a step is none. The micro-batches of an unfinished step belong to the next."""
        if self.step_count:
            self.close_epoch(*self._pop_means('epoch'))
            self.epoch_count += 1
            self.step_count = 0

    def close_epoch(self, means_T: Tensor, seen_T: Tensor) -> None:
        """Takes an epoch's mean losses; arguments as in :meth:`close_step`. ``epoch_count`` is the epoch's index."""
        raise NotImplementedError

    def get_extra_state(self) -> dict[str, Any]:
        """The counts of steps and epochs, for ``state_dict()``."""
        return dict(step_count=self.step_count, epoch_count=self.epoch_count)

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`get_extra_state` returned."""
        self.step_count, self.epoch_count = state['step_count'], state['epoch_count']
