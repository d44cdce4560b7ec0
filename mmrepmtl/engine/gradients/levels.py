"""Combines the gradients of the tasks, at the shared parameters or at Z.

This runs under ``no_sync``. DistributedDataParallel would average the one combined gradient, which is too late for
anything non-linear. Here the gradient of each task is reduced first.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mmrepmtl.engine.aliases import ProcessGroup, State
from mmrepmtl.engine.gradients.base import Level, check_rows
from mmrepmtl.engine.gradients.from_graph import backward_penalty, shared_and_heads, task_gradients, with_zeros
from mmrepmtl.engine.gradients.rows import GradientRows
from mmrepmtl.engine.gradients.writing import (
    accumulate,
    average_gradients,
    flatten,
    in_own_memory,
    keep_layouts,
    segment_in_layout_of,
)
from mmrepmtl.engine.graph import explain_backward, leaves
from mmrepmtl.engine.objective import Step
from mmrepmtl.engine.sum_tensors import sum_tensors
from mmrepmtl.methods.aggregation import Aggregator, GramianAggregator, gramian
from mmrepmtl.methods.aggregation.state import magnitudes
from mmrepmtl.methods.collectives import num_processes


class ParameterLevel(Level):
    """Combines the tasks' gradients by the shared parameters, once at the end of an accumulation window.

    The micro-batches are summed up before, so that two half batches equal one whole batch. A row holds a task's whole
    gradient by the encoder, also the part that bypasses Z.

    Args:
        aggregator: The method.
        group: Process group of the reductions.

    Attributes:
        rows: The tasks' gradients.
        updates: (parameter, its step divided by the learning rate), from a method that is an optimizer.
    """

    def __init__(self, aggregator: Aggregator, group: ProcessGroup) -> None:
        super().__init__(aggregator, group)
        fixed = type(aggregator).__name__ if aggregator.keeps_gradients else None
        self.rows = GradientRows(aggregator.num_batches, fixed, group)
        self.updates: list[tuple[nn.Parameter, Tensor]] = []

    def backward(self, step: Step, parameters: Sequence[nn.Parameter]) -> None:
        """Computes the gradients of encoder and heads in one traversal per task; see :meth:`Level.backward`."""
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
            del here, beyond  # the buffer has them, and the next task's need the memory
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

    def lasting_state(self, index: Mapping[int, int]) -> State:
        """Returns the weights, and the order in which the columns were first used, which a resumed run may change."""
        columns = [index[id(p)] for p in self.rows.parameters]
        return super().lasting_state(index) | (dict(columns=columns) if columns else {})

    def load_lasting_state(self, state: State, parameters: Sequence[nn.Parameter], num_tasks: int) -> None:
        """Restores :meth:`lasting_state`."""
        super().load_lasting_state(state, parameters, num_tasks)
        if 'columns' in state and not self.rows.parameters:
            self.rows.append([parameters[i] for i in state['columns']], num_tasks)

    def window_state(self, index: Mapping[int, int]) -> State:
        """Returns sums and rows."""
        return super().window_state(index) | self.rows.state_dict(index)

    def load_window_state(self, state: State, parameters: Sequence[nn.Parameter]) -> None:
        """Restores :meth:`window_state`."""
        super().load_window_state(state, parameters)
        self.rows.load_state_dict(state, parameters)

    def _reduce_finished(self, batch: int, num_tasks: int) -> None:
        """Starts to reduce the rows of the other independent batches: the last micro-batch adds nothing to them."""
        for other in range(min(self.aggregator.num_batches, self.sums.count)):
            if other != batch:
                for t in range(num_tasks):
                    self.rows.reduce(other, t)

    def _finish(self, step: Step, parameters: Sequence[nn.Parameter]) -> None:
        losses_T = self.sums.mean_losses()
        self.rows.wait()
        self._check_written(step, parameters)
        if not self.rows.in_use:  # a frozen encoder: only the heads learn
            self.weights_T = None
            self.sums.write_heads(None, losses_T)
            average_gradients(parameters, self.group)
        else:
            self.aggregator.setup(len(step.tasks), self.rows.sizes)
            divisor = num_processes() * step.scale
            if isinstance(self.aggregator, GramianAggregator):
                self._finish_by_gramian(self.aggregator, step, parameters, losses_T, divisor)
            else:
                self._finish_by_rows(step, parameters, losses_T, divisor)
        keep_layouts(parameters)
        self.rows.clear()
        self.sums.clear()

    def _finish_by_gramian(
        self,
        aggregator: GramianAggregator,
        step: Step,
        parameters: Sequence[nn.Parameter],
        losses_T: Tensor,
        divisor: float,
    ) -> None:
        gramian_TT = gramian(self.rows.buffer[0]) / divisor**2
        weights = self._solve_weights(aggregator, gramian_TT, losses_T, step.tasks)
        self.sums.write_heads(self.weights_T, losses_T)
        average_gradients(parameters, self.group)
        self.rows.combine([w / num_processes() for w in weights])

    def _finish_by_rows(self, step: Step, parameters: Sequence[nn.Parameter], losses_T: Tensor, divisor: float) -> None:
        gradients = self.rows.buffer  # (num_batches, T, P)
        self._average_batches(gradients)  # first: a short window leaves the rows of an earlier one in place
        check_rows(step.tasks, torch.stack([magnitudes(rows_TP) for rows_TP in gradients]).sum(0))
        if divisor != 1:
            gradients /= divisor
        extra: dict[str, Tensor] = {}
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

    def _average_batches(self, gradients: Tensor) -> None:
        """Makes each independent batch the mean over its own micro-batches; one without any copies the first."""
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

    def __init__(self, aggregator: Aggregator, group: ProcessGroup) -> None:
        super().__init__(aggregator, group)
        self._bypass_checked = False
        self._before: State | None = None  # the method's state at the begin of the window

    def backward(self, step: Step, parameters: Sequence[nn.Parameter]) -> None:
        """Traverses the heads once per task and the encoder once; see :meth:`Level.backward`.

        Raises:
            RuntimeError: If a task's loss depends on the encoder by a way around Z.
        """
        shared, heads = shared_and_heads(step, parameters)
        self._refuse_bypass(step)
        if self.sums.count == 0:
            # Each micro-batch changes the method's state, and the window may yet have to be dropped.
            self._before = copy.deepcopy(self.aggregator.state_dict())
        self.sums.add(step)
        at_views = []
        for t in range(len(step.tasks)):
            here, grads = task_gradients(step, t, heads)
            self.sums.add_heads(t, heads, grads)
            at_views.append(with_zeros(here, step.views))
            del here, grads
        self.penalty_squares = backward_penalty(step, at_views, parameters)
        if isinstance(self.aggregator, GramianAggregator):
            combined = self._combine_by_gramian(self.aggregator, step, at_views)
        else:
            combined = self._combine_gradients(step, at_views)
        if shared:
            with explain_backward('the shared module'):
                encoder_grads = in_own_memory(torch.autograd.grad(step.views, shared, combined, allow_unused=True))
            accumulate(shared, encoder_grads)
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

    def window_state(self, index: Mapping[int, int]) -> State:
        """Returns the sums, and the method's state at the begin of the window."""
        return super().window_state(index) | dict(before=self._before)

    def load_window_state(self, state: State, parameters: Sequence[nn.Parameter]) -> None:
        """Restores :meth:`window_state`."""
        super().load_window_state(state, parameters)
        self._before = state['before']

    def _refuse_bypass(self, step: Step) -> None:
        """Refuses a loss that depends on the encoder by a way around Z: that part of its gradient would be lost."""
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

    def _combine_gradients(self, step: Step, at_views: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        largest_T = torch.stack([_largest(grads) for grads in at_views])
        check_rows(step.tasks, self._sum_over_ranks(largest_T))
        combined = []
        for level, view in enumerate(step.views):
            stacked = torch.stack([grads[level] for grads in at_views])
            combined.append(self.aggregator.at_representation(stacked, view.detach(), self._sum_over_ranks))
        self.sums.write_heads(None, step.objectives_T)
        return combined

    def _combine_by_gramian(
        self, aggregator: GramianAggregator, step: Step, at_views: Sequence[Sequence[Tensor]]
    ) -> list[Tensor]:
        levels = range(len(step.views))
        stacks = (torch.stack([grads[level].flatten() for grads in at_views]) for level in levels)
        gramian_TT = sum_tensors(map(gramian, stacks))
        # Each rank's gradient is that of the *sum* over ranks' losses at its own samples, hence 1 / world size.
        gramian_TT = self._sum_over_ranks(gramian_TT) / (num_processes() * step.scale * step.factor) ** 2
        losses_T = torch.where(step.labelled_T, step.objectives_T, 0)
        weights = self._solve_weights(aggregator, gramian_TT, losses_T, step.tasks)
        self.sums.write_heads(self.weights_T, step.objectives_T)
        pairs = list(zip(weights, at_views, strict=True))
        return [sum_tensors(w * grads[level] for w, grads in pairs) for level in levels]


def level_of(aggregator: Aggregator, group: ProcessGroup) -> Level:
    """Makes the level that an aggregator declares."""
    return (ParameterLevel if aggregator.level == 'parameter' else RepresentationLevel)(aggregator, group)


def _largest(grads: Sequence[Tensor]) -> Tensor:
    """Returns a magnitude of all elements together, not finite if any of them is not."""
    return torch.stack([torch.linalg.vector_norm(grad.detach(), torch.inf).float() for grad in grads]).sum()
