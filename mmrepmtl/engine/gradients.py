"""Moves per-task gradients: out of the graph, over ranks, through an aggregator, into ``.grad``.

Runs outside DistributedDataParallel's own synchronisation (under ``no_sync``), whose mean of one gradient is taken too
late for anything non-linear: here the gradient of each task is reduced first.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmrepmtl.methods.aggregation import Aggregator, GramianAggregator
from mmrepmtl.methods.regularizer import num_processes


def upstream_parameters(views: Sequence[Tensor]) -> set[Tensor]:
    """The leaves that Z was computed from: what an aggregator's gradient is for."""
    seen, found = set(), set()
    stack = [node for view in views if (node := view.grad_fn) is not None]
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

    With gradient accumulation a parameter-level method combines once, at the end of the window, the gradients that the
    micro-batches summed up, so that two half batches equal one whole one. A representation-level method combines each
    micro-batch, since its gradients belong to that micro-batch's Z.
    """

    def __init__(self, aggregator: Aggregator, group) -> None:
        if aggregator.level == 'representation' and not isinstance(aggregator, GramianAggregator):
            raise ValueError(
                f"{type(aggregator).__name__}: level='representation' needs a method that is defined by the "
                'Gramian of the gradients'
            )
        self.aggregator = aggregator
        self.group = group
        self.weights_T: Tensor | None = None
        self.penalty_ratio: float | None = None
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
        upstream = upstream_parameters(views)
        shared = [p for p in parameters if p in upstream]
        others = [p for p in parameters if p not in upstream]
        at_views = []
        for task, objective in zip(tasks, objectives, strict=True):
            grads = torch.autograd.grad(
                objective * (factor * scale), [*views, *others], retain_graph=True, allow_unused=True
            )
            here, beyond = grads[: len(views)], grads[len(views) :]
            if all(grad is None for grad in here):
                raise RuntimeError(
                    f'MultiTaskOptimWrapper: the loss of task {task!r} does not depend on the shared '
                    'representation, so it has no gradient there; check `shared`'
                )
            at_views.append([g if g is not None else torch.zeros_like(v) for g, v in zip(here, views, strict=True)])
            accumulate(others, beyond)
        if rest is not None and rest.requires_grad:
            # Last in order of creation of the graph, so it may free what only it uses; the encoder is still needed.
            self._backward_penalty(rest * (factor * scale), at_views, views, parameters)
        if self.aggregator.level == 'representation':
            self._combine_at_representation(at_views, views, shared, losses_T, scale)
        else:
            self._add_rows(at_views, views, shared)
        if last:
            self._finish(parameters, losses_T, scale)

    def _backward_penalty(self, rest, at_views, views, parameters) -> None:
        """Backward of what is no row of the Jacobian; measures its gradient at Z against the tasks' own."""
        norms: list[Tensor] = []
        hooks = [view.register_hook(lambda grad: norms.append(grad.detach().float().norm())) for view in views]
        torch.autograd.backward(rest, inputs=list(parameters), retain_graph=True)
        for hook in hooks:
            hook.remove()
        tasks = torch.stack(
            [sum(grads[level].float() for grads in at_views).norm() for level in range(len(views))]
        ).norm()
        self.penalty_ratio = float(torch.stack(norms).norm() / tasks) if norms and tasks > 0 else None

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

    def _add_rows(self, at_views, views, shared) -> None:
        if self._rows and [id(p) for p in shared] != [id(p) for p in self._shared]:
            known = {id(p): i for i, p in enumerate(self._shared)}
            self._shared += [p for p in shared if id(p) not in known]
            shared = self._shared
        self._shared = list(shared)
        for t, grads in enumerate(at_views):
            row = torch.autograd.grad(views, shared, grads, retain_graph=t + 1 < len(at_views), allow_unused=True)
            old = self._rows.get(t)
            self._rows[t] = (
                list(row)
                if old is None
                else [
                    b if a is None else a if b is None else a + b
                    for a, b in zip(old + [None] * (len(row) - len(old)), row, strict=True)
                ]
            )

    def _finish(self, parameters, losses_T, scale) -> None:
        average_gradients(parameters, self.group)
        if not self._rows:
            return
        shared, rows = self._shared, self._rows
        self._rows, self._shared = {}, []
        gradients_TP = torch.stack([flatten(rows[t], shared) for t in range(len(rows))])
        gradients_TP = gradients_TP.to(torch.promote_types(gradients_TP.dtype, torch.float32)) / scale
        if num_processes() > 1:
            dist.all_reduce(gradients_TP, group=self.group)
            gradients_TP /= num_processes()
        if torch.isfinite(gradients_TP).all():
            combined_P, self.weights_T = self.aggregator(gradients_TP, losses_T)
        else:
            # The scaler finds the overflow and skips the step; the method's state must not see it.
            combined_P = gradients_TP.sum(0)
        accumulate(shared, unflatten(combined_P * scale, shared))

    def _weights(self, gramian_TT, losses_T) -> Tensor:
        if torch.isfinite(gramian_TT).all():
            self.weights_T = self.aggregator.weights(gramian_TT, losses_T)
            return self.weights_T
        return torch.ones_like(losses_T)


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
