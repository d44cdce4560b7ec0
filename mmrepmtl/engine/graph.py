"""Reads the graph of a loss: which parameters it was computed from, and whose gradient is not finite."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from mmrepmtl.engine.nonfinite import NonFinite, all_finite


def leaves(outputs: Sequence[Tensor], stops: Sequence[Tensor] = ()) -> set[Tensor]:
    """Returns the leaf tensors that ``outputs`` were computed from; the search does not go past ``stops``."""
    found: set[Tensor] = set()
    seen = {get_gradient_edge(stop).node for stop in stops}
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


def check_gradients(groups: Sequence[Mapping[str, Any]], objectives: Sequence[Tensor], tasks: Sequence[str]) -> None:
    """Raises :class:`NonFinite` with the tasks' names if a ``.grad`` is not finite, after one ordinary backward.

    Args:
        groups: The optimizer's parameter groups; their gradients are final, and equal on all ranks.
        objectives: One for each task; only the links of their graphs are read.
        tasks: Their names.
    """
    parameters = [p for group in groups for p in group['params'] if p.grad is not None]
    if not all_finite([p.grad for p in parameters]):
        raise NonFinite('gradient', [tasks[t] for t in tasks_of_nonfinite(parameters, objectives, {})])


def tasks_of_nonfinite(
    parameters: Sequence[nn.Parameter],
    objectives: Sequence[Tensor],
    unwritten: Mapping[int, Mapping[nn.Parameter, Tensor]],
) -> list[int]:
    """Finds the tasks whose parameters have a gradient that is not finite, by their numbers.

    A task that has such a parameter for itself hides those that only share one: the shared gradient may be bad because
    of it.

    Args:
        parameters: Those whose ``.grad`` is looked at.
        objectives: One for each task; only the links of their graphs are read.
        unwritten: Gradients that are not in ``.grad`` yet, for each task.
    """
    bad = {p for p in parameters if p.grad is not None and not _is_finite(p.grad)}
    reached = [leaves([objective]) & bad for objective in objectives]
    for t, grads in unwritten.items():
        reached[t] |= {p for p, grad in grads.items() if not _is_finite(grad)}
    alone = [
        t for t, mine in enumerate(reached) if mine - set().union(*(m for other, m in enumerate(reached) if other != t))
    ]
    return alone or [t for t, mine in enumerate(reached) if mine]


def _is_finite(grad: Tensor) -> bool:
    values = grad if grad.layout is torch.strided else grad.coalesce().values()
    return bool(torch.isfinite(values).all())


@contextmanager
def explain_backward(what: str) -> Iterator[None]:
    """Replaces torch's error about re-entrant checkpointing by one that says what to do; lets all others pass.

    Args:
        what: Owner of the gradient, for the message.
    """
    try:
        yield
    except RuntimeError as error:
        if 'use_reentrant' not in str(error) and 'Checkpointing is not compatible' not in str(error):
            raise
        raise RuntimeError(
            f'MultiTaskOptimWrapper: the gradient of {what} cannot be taken by itself, because the model uses '
            're-entrant checkpointing; call torch.utils.checkpoint.checkpoint(..., use_reentrant=False)'
        ) from error
