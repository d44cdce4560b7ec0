"""The base of both levels at which gradients are combined: the state and the checks that they share."""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmrepmtl.engine.aliases import ProcessGroup, State
from mmrepmtl.engine.gradients.sums import WindowSums
from mmrepmtl.engine.graph import tasks_of_nonfinite
from mmrepmtl.engine.nonfinite import NonFinite, all_finite
from mmrepmtl.engine.objective import Step
from mmrepmtl.methods.aggregation import Aggregator, GramianAggregator
from mmrepmtl.methods.collectives import num_processes


class Level:
    """The base of both levels: runs the backward of each task, combines the gradients, and writes them to ``.grad``.

    Args:
        aggregator: The method.
        group: Process group of the reductions.

    Attributes:
        sums: Losses and heads' gradients of the window so far.
        weights_T: The weights of the last combination, or None.
        penalty_squares: Squared norms at Z of the penalty's gradient and of the tasks', (2,), or None.
    """

    def __init__(self, aggregator: Aggregator, group: ProcessGroup) -> None:
        self.aggregator, self.group = aggregator, group
        self.sums = WindowSums(aggregator)
        self.weights_T: Tensor | None = None
        self.penalty_squares: Tensor | None = None

    def backward(self, step: Step, parameters: Sequence[nn.Parameter]) -> None:
        """Accumulates the gradients of one micro-batch; at the end of its window ``.grad`` is complete.

        Args:
            step: The record of the forward pass.
            parameters: All trainable parameters of the model.

        Raises:
            RuntimeError: If a task's loss does not depend on Z.
            NonFinite: If a gradient is not finite; the method has not seen it, and :meth:`drop` ends the window.
        """
        raise NotImplementedError

    def drop(self) -> None:
        """Forgets the window so far: its step is skipped."""
        self.sums.clear()

    def apply_updates(self, optimizer: torch.optim.Optimizer) -> None:
        """Makes the steps of a method that is an optimizer; there are none here."""

    def lasting_state(self, index: Mapping[int, int]) -> State:
        """Returns the state that outlives a window; ``index`` is {id of a parameter: its number}."""
        # The log shows the weights until the next step.
        return {} if self.weights_T is None else dict(weights_T=self.weights_T.cpu())

    def load_lasting_state(self, state: State, parameters: Sequence[nn.Parameter], num_tasks: int) -> None:
        """Restores :meth:`lasting_state`; ``parameters`` are in the order of its numbers."""
        if 'weights_T' in state:
            self.weights_T = state['weights_T'].to(parameters[0].device)

    def window_state(self, index: Mapping[int, int]) -> State:
        """Returns this rank's state of a window that is not finished; ``index`` is as in :meth:`lasting_state`."""
        return self.sums.state_dict(index)

    def load_window_state(self, state: State, parameters: Sequence[nn.Parameter]) -> None:
        """Restores :meth:`window_state`, after :meth:`load_lasting_state`."""
        self.sums.load_state_dict(state, parameters)

    def _solve_weights(
        self, aggregator: GramianAggregator, gramian_TT: Tensor, losses_T: Tensor, tasks: Sequence[str]
    ) -> list[float]:
        """Computes, keeps and returns the weights of the tasks."""
        check_rows(tasks, gramian_TT.diagonal())
        self.weights_T = aggregator.weights(gramian_TT.cpu(), losses_T.cpu())
        weights: list[float] = self.weights_T.tolist()
        return weights

    def _check_written(self, step: Step, parameters: Sequence[nn.Parameter]) -> None:
        """Checks the gradients that are in no row, before the method counts a step that will not be made."""
        flags = torch.zeros(1 + len(step.tasks), device=step.objectives_T.device)
        if not all_finite([*self.sums.unwritten(), *(p.grad for p in parameters if p.grad is not None)]):
            flags[0] = 1
            for t in tasks_of_nonfinite(parameters, step.objectives, self.sums.heads):
                flags[1 + t] = 1
        found, *at_task = self._sum_over_ranks(flags).tolist()
        if found:
            raise NonFinite('gradient', [task for task, yes in zip(step.tasks, at_task, strict=True) if yes])

    def _sum_over_ranks(self, value: Tensor) -> Tensor:
        if num_processes() > 1:
            dist.all_reduce(value, group=self.group)
        return value


def check_rows(tasks: Sequence[str], sizes_T: Tensor) -> None:
    """Raises :class:`NonFinite` for the tasks whose row is not finite; equal on all ranks.

    Args:
        tasks: Their names.
        sizes_T: A magnitude of each row, (T,), which is not finite if the row is not.
    """
    bad = [task for task, fine in zip(tasks, torch.isfinite(sizes_T).tolist(), strict=True) if not fine]
    if bad:
        raise NonFinite('gradient', bad)
