"""Computes the gradients of one forward pass: those of each task, and that of the penalty."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmrepmtl.engine.gradients.writing import in_own_memory, make_dense
from mmrepmtl.engine.graph import explain_backward, leaves
from mmrepmtl.engine.objective import Step
from mmrepmtl.engine.sum_tensors import sum_tensors


def shared_and_heads(step: Step, parameters: Sequence[nn.Parameter]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Splits parameters into those that Z was computed from, and all others."""
    upstream = leaves(step.views)
    return [p for p in parameters if p in upstream], [p for p in parameters if p not in upstream]


def task_gradients(
    step: Step, t: int, wanted: Sequence[nn.Parameter]
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Computes the gradient of one task's objective by the views and by ``wanted``, each in memory of its own.

    Args:
        step: The record of the forward pass.
        t: Number of the task.
        wanted: Parameters. Those upstream of the views get all that reaches them, also past Z.

    Raises:
        RuntimeError: If the loss has a label and does not depend on Z.
    """
    task, objective, count = step.tasks[t], step.objectives[t], len(step.views)
    grads = in_own_memory(_gradients(task, objective * (step.factor * step.scale), [*step.views, *wanted]))
    if all(grad is None for grad in grads[:count]) and objective.requires_grad and bool(step.labelled_T[t]):
        raise RuntimeError(
            f'MultiTaskOptimWrapper: the loss of task {task!r} does not depend on the shared representation, so it has '
            'no gradient there; check `shared`'
        )
    return grads[:count], grads[count:]


def _gradients(task: str, objective: Tensor, wanted: Sequence[Tensor]) -> Sequence[Tensor | None]:
    if not objective.requires_grad:  # a zero that stands for a missing label
        return [None] * len(wanted)
    with explain_backward(f'task {task!r}'):
        return torch.autograd.grad(objective, wanted, retain_graph=True, allow_unused=True)


def with_zeros(grads: Sequence[Tensor | None], views: Sequence[Tensor]) -> list[Tensor]:
    """Fills in zeros for the views that a task does not depend on."""
    return [torch.zeros_like(view) if grad is None else grad for grad, view in zip(grads, views, strict=True)]


def backward_penalty(
    step: Step, at_views: Sequence[Sequence[Tensor]], parameters: Sequence[nn.Parameter]
) -> Tensor | None:
    """Runs the backward of the terms that belong to no task, into ``.grad``.

    Args:
        step: The record of the forward pass.
        at_views: The tasks' gradients by the views, which the penalty's is compared with.
        parameters: All trainable parameters of the model.

    Returns:
        Squared norms at Z of the penalty's gradient and of the tasks', (2,); None without a penalty.
    """
    if step.rest is None or not step.rest.requires_grad:
        return None
    squares = [step.views[0].new_zeros((), dtype=torch.float32)]

    def measure(grad: Tensor) -> None:
        squares.append(_square(grad))

    hooks = [view.register_hook(measure) for view in step.views]
    rest = step.rest * (step.factor * step.scale)
    with explain_backward('the penalty'):
        torch.autograd.backward(rest, inputs=list(parameters), retain_graph=True)
    make_dense(parameters)
    for hook in hooks:
        hook.remove()
    sums = (sum_tensors(grads[level].float() for grads in at_views) for level in range(len(step.views)))
    return torch.stack([sum_tensors(squares), sum_tensors(map(_square, sums))])


def _square(gradient: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(gradient.detach().float())
    return norm.square()
