"""Combines the gradients of the tasks, at the shared parameters or at Z.

Runs outside DistributedDataParallel's own synchronisation (under ``no_sync``), whose mean of one gradient is taken too
late for anything non-linear: here the gradient of each task is reduced first.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmrepmtl.engine.gradients.from_graph import backward_penalty, shared_and_heads, task_gradients, with_zeros
from mmrepmtl.engine.gradients.rows import GradientRows
from mmrepmtl.engine.gradients.sums import WindowSums
from mmrepmtl.engine.gradients.writing import (
    accumulate,
    average_gradients,
    flatten,
    keep_layouts,
    segment_in_layout_of,
    separated,
)
from mmrepmtl.engine.graph import explain_backward, leaves, tasks_of_nonfinite
from mmrepmtl.engine.nonfinite import NonFinite, all_finite
from mmrepmtl.engine.objective import Step
from mmrepmtl.methods.aggregation import Aggregator, GramianAggregator, gramian
from mmrepmtl.methods.aggregation.state import magnitudes
from mmrepmtl.methods.collectives import num_processes


class Level:
    """Per-task backward, combination and write-back for one optimizer step; base of both levels.

    Args:
        aggregator: The method.
        group: Process group of the reductions.

    Attributes:
        sums: Losses and heads' gradients of the window so far.
        weights_T: The weights of the last combination, or None.
        penalty_squares: Squared norms at Z of the penalty's gradient and of the tasks', (2,), or None.
    """

    def __init__(self, aggregator: Aggregator, group: Any) -> None:
        self.aggregator, self.group = aggregator, group
        self.sums = WindowSums(aggregator)
        self.weights_T: Tensor | None = None
        self.penalty_squares: Tensor | None = None

    def backward(self, step: Step, parameters: Sequence[nn.Parameter]) -> None:
        """Accumulates the gradients of one micro-batch; at the end of its window ``.grad`` is complete.

        Args:
            step: What the forward pass left.
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

    def lasting_state(self, index: Mapping[int, int]) -> dict[str, Any]:
        """What outlives a window; ``index`` is {id of a parameter: its number}."""
        # The log shows the weights until the next step.
        return {} if self.weights_T is None else dict(weights_T=self.weights_T.cpu())

    def load_lasting_state(self, state: Mapping[str, Any], parameters: Sequence[nn.Parameter], num_tasks: int) -> None:
        """Restores :meth:`lasting_state`; ``parameters`` are in the order of its numbers."""
        if 'weights_T' in state:
            self.weights_T = state['weights_T'].to(parameters[0].device)

    def window_state(self, index: Mapping[int, int]) -> dict[str, Any]:
        """What a window that is not finished holds, of this rank; ``index`` is as in :meth:`lasting_state`."""
        return self.sums.state_dict(index)

    def load_window_state(self, state: Mapping[str, Any], parameters: Sequence[nn.Parameter]) -> None:
        """Restores :meth:`window_state`, after :meth:`load_lasting_state`."""
        self.sums.load_state_dict(state, parameters)

    def _weights(self, gramian_TT: Tensor, losses_T: Tensor, tasks: Sequence[str]) -> list[float]:
        _check_rows(tasks, gramian_TT.diagonal())
        self.weights_T = self.aggregator.weights(gramian_TT.cpu(), losses_T.cpu())
        return self.weights_T.tolist()

    def _check_written(self, step: Step, parameters: Sequence[nn.Parameter]) -> None:
        """Checks what is in no row, before the method's state sees a step that will not be made."""
        flags = torch.zeros(1 + len(step.tasks), device=step.objectives_T.device)
        if not all_finite([*self.sums.held(), *(p.grad for p in parameters if p.grad is not None)]):
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


class ParameterLevel(Level):
    """Combines the tasks' gradients by the shared parameters, once at the end of an accumulation window.

    The micro-batches are summed up before, so that two half batches equal one whole one. A row holds everything that a
    task's loss tells the encoder, also past Z.

    Args:
        aggregator: The method.
        group: Process group of the reductions.

    Attributes:
        rows: The tasks' gradients.
        updates: (parameter, step in units of its learning rate) of a method that is an optimizer.
    """

    def __init__(self, aggregator: Aggregator, group: Any) -> None:
        super().__init__(aggregator, group)
        fixed = type(aggregator).__name__ if aggregator.keeps_gradients else None
        self.rows = GradientRows(aggregator.num_batches, fixed, group)
        self.updates: list[tuple[nn.Parameter, Tensor]] = []

    def backward(self, step: Step, parameters: Sequence[nn.Parameter]) -> None:
        """One traversal per task gives the gradients of encoder and heads; see :meth:`Level.backward`."""
        shared, heads = shared_and_heads(step, parameters)
        self.rows.prepare(shared, parameters, len(step.tasks))
        batch = self.sums.count % self.aggregator.num_batches
        self.sums.add(step)
        if step.last:
            self._reduce_finished(batch, len(step.tasks))
        at_views = []
        for t in range(len(step.tasks)):
            here, beyond = task_gradients(step, t, [*heads, *shared])
            self.sums.add_heads(t, heads, beyond[: len(heads)])
            self.rows.add(batch, t, shared, beyond[len(heads) :])
            if step.last:
                self.rows.reduce(batch, t)
            if step.rest is not None:
                at_views.append(with_zeros(here, step.views))
            del here, beyond  # before the next task's come: the buffer holds them
        self.penalty_squares = backward_penalty(step, at_views, parameters)
        if step.last:
            self._finish(step, parameters)

    def drop(self) -> None:
        """Forgets the window so far: its step is skipped."""
        super().drop()
        self.rows.clear()
        self.updates = []

    def apply_updates(self, optimizer: torch.optim.Optimizer) -> None:
        """Makes the steps of a method that is an optimizer: p <- p - lr u, with decoupled weight decay."""
        updates, self.updates = self.updates, []
        if not updates:
            return
        group_of = {id(p): group for group in optimizer.param_groups for p in group['params']}
        with torch.no_grad():
            for p, update in updates:
                group = group_of[id(p)]
                p.mul_(1 - group['lr'] * group.get('weight_decay', 0.0)).sub_(update, alpha=group['lr'])

    def lasting_state(self, index: Mapping[int, int]) -> dict[str, Any]:
        """The weights and the order of the rows' columns, that of first use, which a resumed run may see otherwise."""
        columns = [index[id(p)] for p in self.rows.parameters]
        return super().lasting_state(index) | (dict(columns=columns) if columns else {})

    def load_lasting_state(self, state: Mapping[str, Any], parameters: Sequence[nn.Parameter], num_tasks: int) -> None:
        """Restores :meth:`lasting_state`."""
        super().load_lasting_state(state, parameters, num_tasks)
        if 'columns' in state and not self.rows.parameters:
            self.rows.append([parameters[i] for i in state['columns']], num_tasks)

    def window_state(self, index: Mapping[int, int]) -> dict[str, Any]:
        """Sums and rows."""
        return super().window_state(index) | self.rows.state_dict(index)

    def load_window_state(self, state: Mapping[str, Any], parameters: Sequence[nn.Parameter]) -> None:
        """Restores :meth:`window_state`."""
        super().load_window_state(state, parameters)
        self.rows.load_state_dict(state, parameters)

    def _reduce_finished(self, batch: int, num_tasks: int) -> None:
        """Rows of the other independent batches are complete when the last micro-batch begins."""
        for other in range(min(self.aggregator.num_batches, self.sums.count)):
            if other != batch:
                for t in range(num_tasks):
                    self.rows.reduce(other, t)

    def _finish(self, step: Step, parameters: Sequence[nn.Parameter]) -> None:
        losses_T = self.sums.mean_losses()
        self.rows.wait()
        self._check_written(step, parameters)
        if not self.rows.in_use:  # a frozen encoder: nothing to combine, and heads that learn all the same
            self.weights_T = None
            self.sums.write_heads(None, losses_T)
            average_gradients(parameters, self.group)
        else:
            self.aggregator.setup(len(step.tasks), self.rows.sizes)
            by = self._finish_by_gramian if isinstance(self.aggregator, GramianAggregator) else self._finish_by_rows
            by(step, parameters, losses_T, num_processes() * step.scale)
        keep_layouts(parameters)
        self.rows.clear()
        self.sums.clear()

    def _finish_by_gramian(
        self, step: Step, parameters: Sequence[nn.Parameter], losses_T: Tensor, divisor: float
    ) -> None:
        gramian_TT = gramian(self.rows.buffer[0]) / divisor**2
        weights = self._weights(gramian_TT, losses_T, step.tasks)
        self.sums.write_heads(self.weights_T, losses_T)
        average_gradients(parameters, self.group)
        self.rows.combine([w / num_processes() for w in weights])

    def _finish_by_rows(self, step: Step, parameters: Sequence[nn.Parameter], losses_T: Tensor, divisor: float) -> None:
        gradients = self.rows.buffer  # (num_batches, T, P)
        self._even_out(gradients)  # first: a short window leaves the rows of an earlier one in place
        _check_rows(step.tasks, torch.stack([magnitudes(rows_TP) for rows_TP in gradients]).sum(0))
        if divisor != 1:
            gradients /= divisor
        extra = {}
        if self.aggregator.returns == 'update':
            average_gradients(self.rows.parameters, self.group)
            shared = self.rows.parameters
            if any(p.grad is not None for p in shared):
                extra = dict(extra_P=flatten([p.grad for p in shared], shared).to(gradients).div_(step.scale))
            for p in shared:
                p.grad = None
        rows = gradients if len(gradients) > 1 else gradients[0]
        combined_P, self.weights_T = self.aggregator(rows, losses_T, **extra)
        self.sums.write_heads(self.weights_T, losses_T)
        average_gradients(parameters, self.group)
        parts = [(p, segment_in_layout_of(combined_P[columns], p)) for p, columns in self.rows.written()]
        if self.aggregator.returns == 'update':
            self.updates = parts
            return
        if step.scale != 1:
            combined_P *= step.scale
        for p, part in parts:
            accumulate([p], [part])

    def _even_out(self, gradients: Tensor) -> None:
        """Makes each independent batch the mean over its own micro-batches; one without any repeats the first."""
        count, wanted = self.sums.count, len(gradients)
        if wanted == 1:
            return
        for i in range(wanted):
            own = len(range(i, count, wanted))
            if own:
                gradients[i] *= count / own
            else:
                gradients[i].copy_(gradients[0])


class RepresentationLevel(Level):
    """Combines the tasks' gradients at Z, for each micro-batch, and sends the result through the encoder once.

    The gradients belong to that micro-batch's Z, so they cannot wait for the end of an accumulation window.

    Args:
        aggregator: The method.
        group: Process group of the reductions.
    """

    def __init__(self, aggregator: Aggregator, group: Any) -> None:
        super().__init__(aggregator, group)
        self._bypass_checked = False
        self._before: dict | None = None

    def backward(self, step: Step, parameters: Sequence[nn.Parameter]) -> None:
        """One traversal of the heads per task and one of the encoder; see :meth:`Level.backward`.

        Raises:
            RuntimeError: If a task reads the encoder past Z.
        """
        shared, heads = shared_and_heads(step, parameters)
        self._refuse_bypass(step)
        if self.sums.count == 0:
            # The method moves on with each micro-batch, of a window that may yet have to be dropped.
            self._before = copy.deepcopy(self.aggregator.state_dict())
        self.sums.add(step)
        at_views = []
        for t in range(len(step.tasks)):
            here, grads = task_gradients(step, t, heads)
            self.sums.add_heads(t, heads, grads)
            at_views.append(with_zeros(here, step.views))
            del here, grads
        self.penalty_squares = backward_penalty(step, at_views, parameters)
        by_gramian = isinstance(self.aggregator, GramianAggregator)
        combined = self._by_gramian(step, at_views) if by_gramian else self._by_gradients(step, at_views)
        if shared:
            with explain_backward('the shared module'):
                grads = torch.autograd.grad(step.views, shared, combined, allow_unused=True)
            grads = separated(grads)
            accumulate(shared, grads)
        if step.last:
            self._check_written(step, parameters)
            average_gradients(parameters, self.group)
            keep_layouts(parameters)
            self.sums.clear()
            self._before = None

    def drop(self) -> None:
        """Forgets the window so far, also in the state of the method."""
        super().drop()
        if self._before is not None:
            self.aggregator.load_state_dict(self._before)
            self._before = None

    def window_state(self, index: Mapping[int, int]) -> dict[str, Any]:
        """Sums, and the method's state at the begin of the window."""
        return super().window_state(index) | dict(before=self._before)

    def load_window_state(self, state: Mapping[str, Any], parameters: Sequence[nn.Parameter]) -> None:
        """Restores :meth:`window_state`."""
        super().load_window_state(state, parameters)
        self._before = state['before']

    def _refuse_bypass(self, step: Step) -> None:
        """A gradient that reaches the encoder past Z would be lost where only Z's is combined."""
        if self._bypass_checked:
            return
        upstream = leaves(step.views)
        for task, objective in zip(step.tasks, step.objectives, strict=True):
            if leaves([objective], step.views) & upstream:
                raise RuntimeError(
                    f'MultiTaskOptimWrapper: task {task!r} reads the encoder past the shared representation, which '
                    "level='representation' cannot see; use level='parameter', or name a `shared` that all tasks read"
                )
        self._bypass_checked = True

    def _by_gradients(self, step: Step, at_views: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        largest_T = torch.stack([_largest(grads) for grads in at_views])
        _check_rows(step.tasks, self._sum_over_ranks(largest_T))
        combined = []
        for level, view in enumerate(step.views):
            stacked = torch.stack([grads[level] for grads in at_views])
            combined.append(self.aggregator.at_representation(stacked, view.detach(), self._sum_over_ranks))
        self.sums.write_heads(None, step.objectives_T)
        return combined

    def _by_gramian(self, step: Step, at_views: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        levels = range(len(step.views))
        gramian_TT = sum(gramian(torch.stack([grads[level].flatten() for grads in at_views])) for level in levels)
        # Each rank's gradient is that of the *sum* over ranks' losses at its own samples, hence 1 / world size.
        gramian_TT = self._sum_over_ranks(gramian_TT) / (num_processes() * step.scale * step.factor) ** 2
        weights = self._weights(gramian_TT, torch.where(step.labelled_T, step.objectives_T, 0), step.tasks)
        self.sums.write_heads(self.weights_T, step.objectives_T)
        return [sum(w * grads[level] for w, grads in zip(weights, at_views, strict=True)) for level in levels]


def level_of(aggregator: Aggregator, group: Any) -> Level:
    """The level that an aggregator declares."""
    return (ParameterLevel if aggregator.level == 'parameter' else RepresentationLevel)(aggregator, group)


def _check_rows(tasks: Sequence[str], sizes_T: Tensor) -> None:
    """Raises :class:`NonFinite` where ``sizes_T`` is not finite, which is so where a row is; equal on all ranks."""
    bad = [task for task, fine in zip(tasks, torch.isfinite(sizes_T).tolist(), strict=True) if not fine]
    if bad:
        raise NonFinite('gradient', bad)


def _largest(grads: Sequence[Tensor]) -> Tensor:
    """The largest magnitude, not finite if any element is not."""
    return torch.stack([torch.linalg.vector_norm(grad.detach(), torch.inf).float() for grad in grads]).sum()
