"""The norm at Z of a penalty's gradient beside that of the tasks', measured during the one backward of a step."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from mmrepmtl.methods.regularizer import RegularizerContext


def combine_tasks(
    sources: Mapping[str, list[Tensor]],
    gradients: Mapping[str, list[Tensor]],
    transform: Mapping[str, float | Tensor],
    context: RegularizerContext,
) -> dict[int, tuple[Tensor, Tensor]]:
    """The gradient of the tasks' objective at each distinct tensor that a task is differentiated by.

    Args:
        sources: {task: tensors of Z}.
        gradients: {task: gradients of ``context.scale * transform[task] * loss`` by them}.
        transform: {task: derivative of the transformed loss by the loss}.
        context: Its ``task_weights``, or else ``transform``, are the derivative of the objective by the losses.

    Returns:
        {id: (Z, gradient)}, float32 or float64.
    """
    weights: list[float | Tensor] = [1 / context.scale] * len(sources)
    if context.task_weights is not None:
        weights = [
            weight / (context.scale * transform[task])
            for task, weight in zip(sources, context.task_weights, strict=True)
        ]
    combined: dict[int, tuple[Tensor, Tensor]] = {}
    for weight, levels, parts in zip(weights, sources.values(), gradients.values(), strict=True):
        for source, part in zip(levels, parts, strict=True):
            part = part.detach() if part.dtype == torch.float64 else part.detach().float()
            part = part * torch.as_tensor(weight, dtype=part.dtype, device=part.device).detach()
            earlier = combined.get(id(source))
            combined[id(source)] = source, part if earlier is None else earlier[1] + part
    return combined


def squared_norms(penalty: Tensor, tasks: Tensor) -> Tensor:
    """Squared norms of both, (2,)."""
    return torch.stack([torch.linalg.vector_norm(part).square() for part in (penalty, tasks)])


class BackwardRecord:
    """Squared norms of both gradients at Z, taken from what the backward of a step brings there.

    Args:
        squares: Gets an entry for each tensor, (2,): of the penalty's gradient and of the tasks'.
        scale: The factor of the whole objective in that backward.
        own_backward: Whether the penalty has a backward of its own, so that no task's gradient comes with it.
    """

    def __init__(self, squares: dict[int, Tensor], scale: float | Tensor, own_backward: bool = False) -> None:
        self.squares, self.scale, self.own_backward = squares, scale, own_backward
        self._in_backward = True

    def wait_for(self, terms: Iterable[Tensor]) -> None:
        """Has the record begin in the backward of ``terms``: traversals for the tasks alone come before it."""
        hooked = [term for term in terms if term.requires_grad]
        self._in_backward = not hooked and not self.own_backward
        for term in hooked:
            term.register_hook(self._begin)

    def record(self, index: int, source: Tensor, tasks: Tensor, then: Callable[[Tensor], None] | None = None) -> None:
        """Has that backward write the squares at ``source``.

        Args:
            index: The key of ``squares``.
            source: One tensor of Z.
            tasks: The tasks' gradient there; all that arrives beyond it is the penalty's.
            then: Is called with the squares.
        """
        # A hook of the node below Z: one of Z itself would also see other methods' torch.autograd.grad(..., Z).
        edge = get_gradient_edge(source)
        # The node holds the hook: were the node, or after its use the tasks' part, in the hook, both would outlive the
        # step.
        number, parts = edge.output_nr, [tasks]

        def hook(gradients: tuple[Tensor | None, ...]) -> None:
            gradient = gradients[number]
            if gradient is not None and parts and self._in_backward:
                part = parts.pop()
                total = gradient.detach().to(part.dtype) / self.scale
                self.squares[index] = squared_norms(total if self.own_backward else total - part, part)
                if then is not None:
                    then(self.squares[index])

        edge.node.register_prehook(hook)

    def _begin(self, gradient: Tensor) -> None:
        self._in_backward = True
