"""Moves per-task gradients: out of the graph, over ranks, through an aggregator, into ``.grad``.

Runs outside DistributedDataParallel's own synchronisation (under ``no_sync``), whose mean of one gradient is taken too
late for anything non-linear: here the gradient of each task is reduced first.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from mmrepmtl.methods.aggregation import Aggregator, GramianAggregator
from mmrepmtl.methods.regularizer import num_processes


def leaves(outputs: Sequence[Tensor], stops: Sequence[Tensor] = ()) -> set[Tensor]:
    """The leaf tensors that ``outputs`` were computed from, not looking behind ``stops``."""
    found, seen = set(), {get_gradient_edge(stop).node for stop in stops}
    stack = [output.grad_fn for output in outputs if output.grad_fn is not None]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, 'variable'):
            found.add(node.variable)
        stack.extend(parent for parent, _ in node.next_functions if parent is not None)
    return found


class GradientAggregation:
    """Per-task backward, combination and write-back for one optimizer step.

    Args:
        aggregator: The method.
        group: Process group of the reductions.
        skip_nonfinite: Whether a gradient scaler deals with gradients that are not finite.

    With gradient accumulation a parameter-level method combines once, at the end of the window, the gradients that the
    micro-batches summed up, so that two half batches equal one whole one. A representation-level method combines each
    micro-batch, since its gradients belong to that micro-batch's Z.
    """

    def __init__(self, aggregator: Aggregator, group, skip_nonfinite: bool = False) -> None:
        if aggregator.level == 'representation' and not isinstance(aggregator, GramianAggregator):
            raise ValueError(
                f"{type(aggregator).__name__}: level='representation' needs a method that is defined by the "
                'Gramian of the gradients'
            )
        self.aggregator = aggregator
        self.group = group
        self.skip_nonfinite = skip_nonfinite
        self.weights_T: Tensor | None = None
        self.penalty_squares: Tensor | None = None
        self._bypass_checked = False
        self._rows: dict[int, list[Tensor | None]] = {}
        self._shared: list[nn.Parameter] = []

    def backward(
        self,
        tasks: Sequence[str],
        objectives: Sequence[Tensor],
        rest: Tensor | None,
        views: Sequence[Tensor],
        parameters: Sequence[nn.Parameter],
        losses_T: Tensor,
        factor: float,
        scale: float,
        last: bool,
    ) -> None:
        """Accumulates the gradients of one micro-batch and, if it is the ``last`` of its window, combines them.

        Args:
            tasks: Names, for errors.
            objectives: Each task's weighted, transformed loss.
            rest: What is added after aggregation (penalties, unclaimed losses), or None; without a graph in iterations
                that a regulariser leaves out.
            views: The views of Z that the heads read.
            parameters: All trainable parameters of the model.
            losses_T: Global loss values, for methods that read them.
            factor: 1 / number of micro-batches in the window.
            scale: The gradient scaler's scale; ``.grad`` is left multiplied by it.
            last: Whether the window ends here.

        Raises:
            RuntimeError: If a task's loss does not depend on Z.
        """
        upstream = leaves(views)  # what an aggregator's gradient is for
        shared = [p for p in parameters if p in upstream]
        others = [p for p in parameters if p not in upstream]
        at_parameters = self.aggregator.level == 'parameter'
        if not at_parameters:
            self._refuse_bypass(tasks, objectives, views, upstream)
        # At parameter level one traversal gives everything, also what reaches the encoder past Z.
        wanted = [*views, *others, *(shared if at_parameters else ())]
        at_views, rows = [], []
        for task, objective in zip(tasks, objectives, strict=True):
            grads = torch.autograd.grad(objective * (factor * scale), wanted, retain_graph=True, allow_unused=True)
            here, beyond = grads[: len(views)], grads[len(views) :]
            if all(grad is None for grad in here):
                raise RuntimeError(
                    f'MultiTaskOptimWrapper: the loss of task {task!r} does not depend on the shared '
                    'representation, so it has no gradient there; check `shared`'
                )
            at_views.append([g if g is not None else torch.zeros_like(v) for g, v in zip(here, views, strict=True)])
            accumulate(others, beyond[: len(others)])
            rows.append(list(beyond[len(others) :]))
        self.penalty_squares = None
        if rest is not None and rest.requires_grad:
            self._backward_penalty(rest * (factor * scale), at_views, views, parameters)
        if at_parameters:
            self._add_rows(rows, shared)
        else:
            self._combine_at_representation(at_views, views, shared, losses_T, scale)
        if last:
            self._finish(tasks, parameters, losses_T, scale)

    def _refuse_bypass(self, tasks, objectives, views, upstream) -> None:
        """A gradient that reaches the encoder past Z would be lost where only Z's is combined."""
        if self._bypass_checked:
            return
        for task, objective in zip(tasks, objectives, strict=True):
            if leaves([objective], views) & upstream:
                raise RuntimeError(
                    f'MultiTaskOptimWrapper: task {task!r} reads the encoder past the shared representation, which '
                    "level='representation' cannot see; use level='parameter', or name a `shared` that all tasks read"
                )
        self._bypass_checked = True

    def _backward_penalty(self, rest, at_views, views, parameters) -> None:
        """Backward of what is no row of the Jacobian; measures its gradient at Z against the tasks' own."""
        squares = [views[0].new_zeros((), dtype=torch.float32)]
        hooks = [view.register_hook(lambda grad: squares.append(_square(grad))) for view in views]
        torch.autograd.backward(rest, inputs=list(parameters), retain_graph=True)
        for hook in hooks:
            hook.remove()
        tasks = sum(_square(sum(grads[level].float() for grads in at_views)) for level in range(len(views)))
        self.penalty_squares = torch.stack([sum(squares), tasks])

    def _combine_at_representation(self, at_views, views, shared, losses_T, scale) -> None:
        gramian_TT = sum(
            flat @ flat.T
            for flat in (
                torch.stack([grads[level].flatten() for grads in at_views]).double() for level in range(len(views))
            )
        )
        if num_processes() > 1:
            # Each rank's gradient is that of the *sum* over ranks' losses at its own samples, hence 1 / world size.
            dist.all_reduce(gramian_TT, group=self.group)
            gramian_TT /= num_processes() ** 2
        weights_T = self._weights(gramian_TT / scale**2, losses_T)
        combined = [
            sum(w.to(grads[level].dtype) * grads[level] for w, grads in zip(weights_T, at_views, strict=True))
            for level in range(len(views))
        ]
        if shared:
            accumulate(shared, torch.autograd.grad(views, shared, combined, allow_unused=True))

    def _add_rows(self, rows, shared) -> None:
        """Adds the rows of a micro-batch to those of its window; parameters may be used in some of them only."""
        known = {id(p): i for i, p in enumerate(self._shared)}
        self._shared += [p for p in shared if id(p) not in known]
        at = {id(p): i for i, p in enumerate(shared)}
        for t, row in enumerate(rows):
            old = self._rows.get(t, [])
            new = [row[at[id(p)]] if id(p) in at else None for p in self._shared]
            old = old + [None] * (len(new) - len(old))
            self._rows[t] = [b if a is None else a if b is None else a + b for a, b in zip(old, new, strict=True)]

    def _finish(self, tasks, parameters, losses_T, scale) -> None:
        average_gradients(parameters, self.group)
        shared, rows = self._shared, self._rows
        self._rows, self._shared = {}, []
        if not shared:
            return
        gradients_TP = torch.stack([flatten(rows[t], shared) for t in range(len(rows))])
        gradients_TP = gradients_TP.to(torch.promote_types(gradients_TP.dtype, torch.float32))
        if scale != 1:
            gradients_TP /= scale
        if num_processes() > 1:
            dist.all_reduce(gradients_TP, group=self.group)
            gradients_TP /= num_processes()
        bad = [task for task, row in zip(tasks, gradients_TP, strict=True) if not torch.isfinite(row.sum())]
        if not bad:
            combined_P, self.weights_T = self.aggregator(gradients_TP, losses_T)
        elif self.skip_nonfinite:
            # The scaler finds the overflow and skips the step; the method's state must not see it.
            combined_P = gradients_TP.sum(0)
        else:
            raise FloatingPointError(f'MultiTaskOptimWrapper: the gradient of task {bad[0]!r} is not finite')
        accumulate(shared, unflatten(combined_P * scale if scale != 1 else combined_P, shared))

    def _weights(self, gramian_TT, losses_T) -> Tensor:
        if torch.isfinite(gramian_TT).all():
            self.weights_T = self.aggregator.weights(gramian_TT, losses_T)
            return self.weights_T
        return torch.ones_like(losses_T)


def _square(gradient: Tensor) -> Tensor:
    return torch.linalg.vector_norm(gradient.detach().float()).square()


def accumulate(parameters: Sequence[nn.Parameter], grads: Sequence[Tensor | None]) -> None:
    """Adds gradients to ``.grad``, as backward does."""
    for parameter, grad in zip(parameters, grads, strict=True):
        if grad is not None:
            parameter.grad = grad.detach().to(parameter.dtype) if parameter.grad is None else parameter.grad + grad


def flatten(grads: Sequence[Tensor | None], parameters: Sequence[nn.Parameter]) -> Tensor:
    """One row of all gradients, zeros where there is none."""
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(grads, parameters, strict=True)]
    )


def unflatten(row: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """The inverse of :func:`flatten`."""
    return [part.view_as(p) for part, p in zip(row.split([p.numel() for p in parameters]), parameters, strict=True)]


def average_gradients(parameters: Sequence[nn.Parameter], group) -> None:
    """Replaces every ``.grad`` by its mean over ranks; a parameter that no rank used keeps None."""
    if num_processes() == 1:
        return
    used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=parameters[0].device)
    dist.all_reduce(used, group=group)
    wanted = [p for p, count in zip(parameters, used.tolist(), strict=True) if count]
    by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
    for p in wanted:
        by_dtype.setdefault(p.dtype, []).append(p)
    for same in by_dtype.values():
        flat = flatten([p.grad for p in same], same)
        dist.all_reduce(flat, group=group)
        for p, mean in zip(same, unflatten(flat / num_processes(), same), strict=True):
            p.grad = mean.clone()
