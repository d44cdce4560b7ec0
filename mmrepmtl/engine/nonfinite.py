"""Finds losses and gradients that are not finite: training stops with the task's name, or the step is skipped."""

from collections.abc import Sequence

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmrepmtl.engine.aliases import State


class NonFinite(Exception):  # noqa: N818  a signal inside the engine, never seen by users
    """A loss or gradient that is not finite, the same on all ranks.

    Args:
        what: 'loss', 'gradient' or 'penalty'.
        tasks: Names of the tasks that it belongs to; empty if it belongs to none.
        value: The number, for the message.
    """

    def __init__(self, what: str, tasks: Sequence[str] = (), value: float | None = None) -> None:
        self.what, self.tasks, self.value = what, list(tasks), value
        of = f' of task {self.tasks[0]!r}' if len(self.tasks) == 1 else f' of tasks {self.tasks}' if self.tasks else ''
        super().__init__(f'the {what}{of} is not finite' + ('' if value is None else f' ({value})'))


def check_finite(tasks: Sequence[str], losses_T: Tensor, extra: Tensor | None) -> None:
    """Raises :class:`NonFinite` with the tasks' names if a loss is not finite."""
    bad = [i for i, fine in enumerate(torch.isfinite(losses_T).tolist()) if not fine]
    if bad:
        raise NonFinite('loss', [tasks[i] for i in bad], losses_T[bad[0]].item())
    if extra is not None and not torch.isfinite(extra):
        raise NonFinite('sum of the losses that no task claims', value=extra.item())


def all_finite(grads: Sequence[Tensor]) -> bool:
    """Whether every element is finite, in one pass and one transfer; equal on all ranks if the gradients are."""
    # On a CPU the 2-norm is several times faster than the maximum. It may overflow for finite elements: ask again then.
    return not grads or any(_all_norms_finite(grads, order) for order in (2, torch.inf))


def _all_norms_finite(grads: Sequence[Tensor], order: float) -> bool:
    return bool(torch.isfinite(torch.stack([n.float() for n in torch._foreach_norm(list(grads), order)])).all())


class NonFinitePolicy:
    """Counts skipped steps, and stops training if the setting says so.

    An overflow of a gradient scaler is no error: the step is skipped, as always with float16, and the scale is lowered.
    ``max_skipped`` skipped steps in a row are an error, whatever skipped them: the run no longer learns.

    Args:
        mode: ``'raise'`` or ``'skip'``.
        has_scaler: Whether a gradient scaler is at work.
        max_skipped: Number of skipped steps in a row that stops training.

    Attributes:
        total: Skipped steps of the run.
        in_a_row: Skipped steps since the last one that was made.
        found: The error of this window, or None.
    """

    def __init__(self, mode: str, has_scaler: bool, max_skipped: int) -> None:
        if mode not in ('raise', 'skip'):
            raise ValueError(f"MultiTaskOptimWrapper: on_nonfinite must be 'raise' or 'skip', got {mode!r}")
        if max_skipped < 1:
            raise ValueError(f'MultiTaskOptimWrapper: max_skipped must be at least 1, got {max_skipped!r}')
        self.mode, self.has_scaler, self.max_skipped = mode, has_scaler, max_skipped
        self.total = self.in_a_row = 0
        self.found: NonFinite | None = None

    @property
    def may_skip(self) -> bool:
        """Whether a step can be skipped at all."""
        return self.has_scaler or self.mode == 'skip'

    def record(self, error: NonFinite, iteration: int) -> None:
        """Remembers the error, so that this window's step is skipped.

        Raises:
            FloatingPointError: If the setting is 'raise' and no scaler is at work.
        """
        if not self.may_skip:
            raise FloatingPointError(
                f'MultiTaskOptimWrapper: {error} in iteration {iteration}; '
                "on_nonfinite='skip' would skip such steps and count them"
            ) from error
        self.found = self.found or error

    def count_skip(self, iteration: int) -> None:
        """Counts a step that is skipped for the recorded error.

        Raises:
            FloatingPointError: If it is the ``max_skipped``-th in a row.
        """
        error, self.found = self.found, None
        self.total += 1
        self.in_a_row += 1
        if self.in_a_row >= self.max_skipped:
            raise FloatingPointError(
                f'MultiTaskOptimWrapper: {self.in_a_row} steps in a row were skipped, the last in iteration '
                f'{iteration}: {error}; the run no longer learns'
            )
        if self.mode == 'skip' or self.in_a_row > 1:
            print_log(
                f'MultiTaskOptimWrapper: {error} in iteration {iteration}; the step is skipped ({self.total} so far)',
                logger='current',
                level=30,
            )

    def count_step(self) -> None:
        """Counts a step that was made."""
        self.in_a_row = 0

    def state_dict(self) -> State:
        """Returns the counts."""
        return dict(total=self.total, in_a_row=self.in_a_row)

    def load_state_dict(self, state: State) -> None:
        """Restores :meth:`state_dict`."""
        self.total, self.in_a_row = state['total'], state['in_a_row']
