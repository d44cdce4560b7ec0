"""Moves per-task gradients: out of the graph, over ranks, through an aggregator, into ``.grad``.

Runs outside DistributedDataParallel's own synchronisation (under ``no_sync``), whose mean of one gradient is taken too
late for anything non-linear: here the gradient of each task is reduced first.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmrepmtl.engine.graph import blame, explain_backward, leaves
from mmrepmtl.engine.nonfinite import NonFinite, all_finite
from mmrepmtl.engine.objective import Step
from mmrepmtl.engine.rows import (
    GradientRows,
    accumulate,
    apart,
    average_gradients,
    densify,
    flatten,
    keep_layouts,
    segment_in_layout_of,
)
from mmrepmtl.methods.aggregation import Aggregator, GramianAggregator, gramian
from mmrepmtl.methods.aggregation.state import magnitudes
from mmrepmtl.methods.collectives import num_processes


@dataclass
class MicroBatch:
    """What one forward pass left for its backward.

    Attributes:
        tasks: Names, for errors.
        objectives: Each task's weighted, transformed loss.
        rest: What is added after aggregation (penalties, unclaimed losses), or None; without a graph in iterations that
            a regulariser leaves out.
        views: The views of Z that the heads read.
        losses_T: Global values of the objectives, for methods that read them.
        labelled_T: Which tasks have a label anywhere in the global batch, (T,) bool.
        factor: 1 / number of micro-batches in the window.
        scale: The gradient scaler's scale; ``.grad`` is left multiplied by it.
        last: Whether the window ends here.
    """

    tasks: Sequence[str]
    objectives: Sequence[Tensor]
    rest: Tensor | None
    views: Sequence[Tensor]
    losses_T: Tensor
    labelled_T: Tensor
    factor: float
    scale: float
    last: bool

    @classmethod
    def of_step(cls, step: Step, **changes) -> 'MicroBatch':
        """That of what the forward hooks left; ``changes`` are ``factor``, ``scale`` and ``last``."""
        return cls(
            tasks=list(step.losses.losses),
            objectives=step.objectives,
            rest=step.rest,
            views=step.views,
            losses_T=torch.stack([objective.detach() for objective in step.objectives]),
            labelled_T=step.losses.labelled_T,
            **changes,
        )


@dataclass
class _Window:
    """Sums over the micro-batches of an accumulation window."""

    count: int = 0
    losses_T: Tensor | None = None
    labelled_T: Tensor | None = None
    heads: dict[int, dict[nn.Parameter, Tensor]] = field(default_factory=dict)

    def add(self, micro: MicroBatch) -> None:
        labelled_T = micro.labelled_T.to(micro.losses_T.dtype)
        losses_T = torch.where(micro.labelled_T, micro.losses_T, 0)
        self.losses_T = losses_T if self.losses_T is None else self.losses_T + losses_T
        self.labelled_T = labelled_T if self.labelled_T is None else self.labelled_T + labelled_T
        self.count += 1

    def mean_losses(self) -> Tensor:
        """Mean over the micro-batches in which the task is labelled, 0 where there is none."""
        return self.losses_T / self.labelled_T.clamp(min=1)


class GradientAggregation:
    """Per-task backward, combination and write-back for one optimizer step.

    Args:
        aggregator: The method.
        group: Process group of the reductions.

    With gradient accumulation a parameter-level method combines once, at the end of the window, the gradients that the
    micro-batches summed up, so that two half batches equal one whole one. A representation-level method combines each
    micro-batch, since its gradients belong to that micro-batch's Z.

    Attributes:
        weights_T: The weights of the last combination, or None.
        penalty_squares: Squared norms at Z of the penalty's gradient and of the tasks', (2,), or None.
        updates: (parameter, step in units of its learning rate) of a method that is an optimizer.
    """

    def __init__(self, aggregator: Aggregator, group) -> None:
        self.aggregator, self.group = aggregator, group
        self.at_parameters = aggregator.level == 'parameter'
        self.weights_T: Tensor | None = None
        self.penalty_squares: Tensor | None = None
        self.updates: list[tuple[nn.Parameter, Tensor]] = []
        # Heads are scaled after the combination only where the method has something to say about them.
        own = type(aggregator).head_weights is not Aggregator.head_weights
        self._holds_heads = aggregator.weight_heads or own
        self._bypass_checked = False
        self._before: dict | None = None
        self._window = _Window()
        fixed = type(aggregator).__name__ if aggregator.keeps_gradients else None
        self.rows = GradientRows(aggregator.num_batches, fixed, group)

    def backward(self, micro: MicroBatch, parameters: Sequence[nn.Parameter]) -> None:
        """Accumulates the gradients of one micro-batch and, if it is the last of its window, combines them.

        Args:
            micro: What the forward pass left.
            parameters: All trainable parameters of the model.

        Raises:
            RuntimeError: If a task's loss does not depend on Z.
            NonFinite: If a gradient is not finite; the method has not seen it, and :meth:`drop` ends the window.
        """
        upstream = leaves(micro.views)  # what an aggregator's gradient is for
        shared = [p for p in parameters if p in upstream]
        others = [p for p in parameters if p not in upstream]
        if self.at_parameters:
            self.rows.prepare(shared, parameters, len(micro.tasks))
        else:
            self._refuse_bypass(micro, upstream)
            if self._window.count == 0:
                # The method moves on with each micro-batch, of a window that may yet have to be dropped.
                self._before = copy.deepcopy(self.aggregator.state_dict())
        batch = self._window.count % self.aggregator.num_batches
        self._window.add(micro)
        if micro.last and self.at_parameters:
            self._reduce_finished(batch, len(micro.tasks))
        # At parameter level one traversal gives everything, also what reaches the encoder past Z.
        wanted = [*micro.views, *others, *(shared if self.at_parameters else ())]
        at_views = []
        for t, (task, objective) in enumerate(zip(micro.tasks, micro.objectives, strict=True)):
            scaled = objective * (micro.factor * micro.scale)
            grads = apart(_gradients(task, scaled, wanted))
            here, beyond = grads[: len(micro.views)], grads[len(micro.views) :]
            if all(grad is None for grad in here) and objective.requires_grad and bool(micro.labelled_T[t]):
                raise RuntimeError(
                    f'MultiTaskOptimWrapper: the loss of task {task!r} does not depend on the shared '
                    'representation, so it has no gradient there; check `shared`'
                )
            self._add_heads(t, others, beyond[: len(others)])
            if self.at_parameters:
                self.rows.add(batch, t, shared, beyond[len(others) :])
                if micro.last:
                    self.rows.reduce(batch, t)
            if micro.rest is not None or not self.at_parameters:
                pairs = zip(here, micro.views, strict=True)
                at_views.append([torch.zeros_like(v) if g is None else g for g, v in pairs])
            del grads, here, beyond  # before the next task's come: the buffer holds them
        self.penalty_squares = None
        if micro.rest is not None and micro.rest.requires_grad:
            self._backward_penalty(micro, at_views, parameters)
        if not self.at_parameters:
            self._combine_at_representation(micro, at_views, shared)
        if micro.last:
            self._finish(micro, parameters)

    def drop(self) -> None:
        """Forgets the window so far: its step is skipped."""
        self.rows.clear()
        self._window, self.updates = _Window(), []
        if self._before is not None:
            self.aggregator.load_state_dict(self._before)
            self._before = None

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

    def _add_heads(self, task: int, others, grads) -> None:
        if not self._holds_heads:
            accumulate(others, grads)
            return
        held = self._window.heads.setdefault(task, {})
        for p, grad in zip(others, grads, strict=True):
            if grad is not None:
                held[p] = held[p] + grad if p in held else grad

    def _write_heads(self, weights_T: Tensor | None, losses_T: Tensor) -> None:
        """Moves the heads' gradients to ``.grad``, multiplied by what the method says."""
        if not self._holds_heads:
            return
        factors_T = self.aggregator.head_weights(weights_T, losses_T)
        factors = [1.0] * len(losses_T) if factors_T is None else factors_T.tolist()
        for task, held in self._window.heads.items():
            while held:  # one by one: a copy of all heads' gradients would be the peak of the step
                p, grad = held.popitem()
                accumulate([p], [grad * factors[task]])
        self._window.heads = {}

    def _refuse_bypass(self, micro: MicroBatch, upstream) -> None:
        """A gradient that reaches the encoder past Z would be lost where only Z's is combined."""
        if self._bypass_checked:
            return
        for task, objective in zip(micro.tasks, micro.objectives, strict=True):
            if leaves([objective], micro.views) & upstream:
                raise RuntimeError(
                    f'MultiTaskOptimWrapper: task {task!r} reads the encoder past the shared representation, which '
                    "level='representation' cannot see; use level='parameter', or name a `shared` that all tasks read"
                )
        self._bypass_checked = True

    def _backward_penalty(self, micro: MicroBatch, at_views, parameters) -> None:
        """Backward of what is no row of the Jacobian; measures its gradient at Z against the tasks' own."""
        squares = [micro.views[0].new_zeros((), dtype=torch.float32)]
        hooks = [view.register_hook(lambda grad: squares.append(_square(grad))) for view in micro.views]
        rest = micro.rest * (micro.factor * micro.scale)
        with explain_backward('the penalty'):
            torch.autograd.backward(rest, inputs=list(parameters), retain_graph=True)
        densify(parameters)
        for hook in hooks:
            hook.remove()
        tasks = sum(_square(sum(grads[level].float() for grads in at_views)) for level in range(len(micro.views)))
        self.penalty_squares = torch.stack([sum(squares), tasks])

    # ---- representation level ----

    def _combine_at_representation(self, micro: MicroBatch, at_views, shared) -> None:
        if isinstance(self.aggregator, GramianAggregator):
            combined = self._combine_by_gramian(micro, at_views)
        else:
            largest_T = torch.stack([_largest(grads) for grads in at_views])
            self._check_rows(micro, self._sum_over_ranks(largest_T))
            combined = []
            for level, view in enumerate(micro.views):
                stacked = torch.stack([grads[level] for grads in at_views])
                combined.append(self.aggregator.at_representation(stacked, view.detach(), self._sum_over_ranks))
            self._write_heads(None, micro.losses_T)
        if shared:
            with explain_backward('the shared module'):
                grads = torch.autograd.grad(micro.views, shared, combined, allow_unused=True)
            grads = apart(grads)
            accumulate(shared, grads)

    def _combine_by_gramian(self, micro: MicroBatch, at_views) -> list[Tensor]:
        levels = range(len(micro.views))
        gramian_TT = sum(gramian(torch.stack([grads[level].flatten() for grads in at_views])) for level in levels)
        # Each rank's gradient is that of the *sum* over ranks' losses at its own samples, hence 1 / world size.
        gramian_TT = self._sum_over_ranks(gramian_TT) / (num_processes() * micro.scale * micro.factor) ** 2
        weights = self._weights(gramian_TT, torch.where(micro.labelled_T, micro.losses_T, 0), micro)
        self._write_heads(self.weights_T, micro.losses_T)
        return [sum(w * grads[level] for w, grads in zip(weights, at_views, strict=True)) for level in levels]

    def _sum_over_ranks(self, value: Tensor) -> Tensor:
        if num_processes() > 1:
            dist.all_reduce(value, group=self.group)
        return value

    # ---- parameter level ----

    def _reduce_finished(self, batch: int, num_tasks: int) -> None:
        """Rows of the other independent batches are complete when the last micro-batch begins."""
        for other in range(min(self.aggregator.num_batches, self._window.count)):
            if other != batch:
                for t in range(num_tasks):
                    self.rows.reduce(other, t)

    def _finish(self, micro: MicroBatch, parameters) -> None:
        losses_T = self._window.mean_losses()
        self.rows.wait()
        self._check_rest(micro, parameters)
        if self.at_parameters and self.rows.in_use:
            self.aggregator.setup(len(micro.tasks), self.rows.sizes)
            divisor = num_processes() * micro.scale
            if isinstance(self.aggregator, GramianAggregator):
                self._finish_by_gramian(micro, parameters, losses_T, divisor)
            else:
                self._finish_by_rows(micro, parameters, losses_T, divisor)
        else:
            if self.at_parameters:  # a frozen encoder: nothing to combine, and heads that learn all the same
                self.weights_T = None
                self._write_heads(None, losses_T)
            average_gradients(parameters, self.group)
        keep_layouts(parameters)
        self.rows.clear()
        self._window, self._before = _Window(), None

    def _finish_by_gramian(self, micro: MicroBatch, parameters, losses_T, divisor: float) -> None:
        gramian_TT = gramian(self.rows.buffer[0]) / divisor**2
        self._check_rows(micro, gramian_TT.diagonal())
        weights = self._weights(gramian_TT, losses_T, micro)
        self._write_heads(self.weights_T, losses_T)
        average_gradients(parameters, self.group)
        self.rows.combine([w / num_processes() for w in weights])

    def _finish_by_rows(self, micro: MicroBatch, parameters, losses_T, divisor: float) -> None:
        gradients = self.rows.buffer  # (num_batches, T, P)
        self._even_out(gradients)  # first: a short window leaves the rows of an earlier one in place
        self._check_rows(micro, torch.stack([magnitudes(rows_TP) for rows_TP in gradients]).sum(0))
        if divisor != 1:
            gradients /= divisor
        extra = {}
        if self.aggregator.returns == 'update':
            average_gradients(self.rows.parameters, self.group)
            shared = self.rows.parameters
            if any(p.grad is not None for p in shared):
                extra = dict(extra_P=flatten([p.grad for p in shared], shared).to(gradients).div_(micro.scale))
            for p in shared:
                p.grad = None
        rows = gradients if len(gradients) > 1 else gradients[0]
        combined_P, self.weights_T = self.aggregator(rows, losses_T, **extra)
        self._write_heads(self.weights_T, losses_T)
        average_gradients(parameters, self.group)
        parts = [(p, segment_in_layout_of(combined_P[columns], p)) for p, columns in self.rows.written()]
        if self.aggregator.returns == 'update':
            self.updates = parts
            return
        if micro.scale != 1:
            combined_P *= micro.scale
        for p, part in parts:
            accumulate([p], [part])

    def _even_out(self, gradients: Tensor) -> None:
        """Makes each independent batch the mean over its own micro-batches; one without any repeats the first."""
        count, wanted = self._window.count, len(gradients)
        if wanted == 1:
            return
        for i in range(wanted):
            own = len(range(i, count, wanted))
            if own:
                gradients[i] *= count / own
            else:
                gradients[i].copy_(gradients[0])

    def _weights(self, gramian_TT: Tensor, losses_T: Tensor, micro: MicroBatch) -> list[float]:
        self._check_rows(micro, gramian_TT.diagonal())
        self.weights_T = self.aggregator.weights(gramian_TT.cpu(), losses_T.cpu())
        return self.weights_T.tolist()

    def _check_rows(self, micro: MicroBatch, sizes_T: Tensor) -> None:
        """``sizes_T`` is not finite where a row is not; equal on all ranks."""
        bad = [task for task, fine in zip(micro.tasks, torch.isfinite(sizes_T).tolist(), strict=True) if not fine]
        if bad:
            raise NonFinite('gradient', bad)

    def _check_rest(self, micro: MicroBatch, parameters) -> None:
        """Checks what is in no row, before the method's state sees a step that will not be made."""
        held = [grad for grads in self._window.heads.values() for grad in grads.values()]
        flags = torch.zeros(1 + len(micro.tasks), device=micro.losses_T.device)
        if not all_finite(held + [p.grad for p in parameters if p.grad is not None]):
            flags[0] = 1
            for t in blame(parameters, micro.objectives, self._window.heads):
                flags[1 + t] = 1
        found, *at_task = self._sum_over_ranks(flags).tolist()
        if found:
            raise NonFinite('gradient', [task for task, yes in zip(micro.tasks, at_task, strict=True) if yes])


def _gradients(task: str, objective: Tensor, wanted: Sequence[Tensor]) -> Sequence[Tensor | None]:
    if not objective.requires_grad:  # a zero that stands for a missing label
        return [None] * len(wanted)
    with explain_backward(f'task {task!r}'):
        return torch.autograd.grad(objective, wanted, retain_graph=True, allow_unused=True)


def _largest(grads: Sequence[Tensor]) -> Tensor:
    """The largest magnitude, not finite if any element is not."""
    return torch.stack([torch.linalg.vector_norm(grad.detach(), torch.inf).float() for grad in grads]).sum()


def _square(gradient: Tensor) -> Tensor:
    return torch.linalg.vector_norm(gradient.detach().float()).square()
