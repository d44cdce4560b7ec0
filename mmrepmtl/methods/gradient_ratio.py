"""The norm at Z of a penalty's gradient beside that of the tasks', measured during the one backward of a step."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge


def combine_tasks(
    sources: Mapping[str, list[Tensor]], gradients: Mapping[str, list[Tensor]], weights: list[float | Tensor]
) -> dict[int, tuple[Tensor, Tensor]]:
    """{id: (Z, sum of weight * gradient of the tasks)} of each distinct tensor that a task is differentiated by."""
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


def record_at_backward(
    squares: dict[int, Tensor], index: int, source: Tensor, tasks: Tensor, scale: float | Tensor
) -> None:
    """Has the next backward through ``source`` write the squared norms there into ``squares``.

    Args:
        squares: Gets ``squares[index]``, (2,): of the penalty's gradient and of the tasks'.
        index: The number of ``source``.
        source: One tensor of Z.
        tasks: The tasks' gradient there; all that arrives beyond it is the penalty's.
        scale: The factor of the whole objective in that backward.
    """
    # A hook of the node below Z: one of Z itself would also see other methods' torch.autograd.grad(..., Z).
    edge = get_gradient_edge(source)
    # The node holds the hook: were the node, or after its use the tasks' part, in the hook, both would outlive the
    # step.
    number, parts = edge.output_nr, [tasks]

    def record(gradients: tuple[Tensor | None, ...]) -> None:
        gradient = gradients[number]
        if gradient is not None and parts:
            part = parts.pop()
            total = gradient.detach().to(part.dtype) / scale
            squares[index] = squared_norms(total - part, part)

    edge.node.register_prehook(record)
