"""Task saliency: the gradient of each task's loss with respect to the shared representation, kept in the graph.

Dimensions: T tasks, B samples, C channels, N positions.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

#: A map, several maps (levels), or one of these per task (tasks that do not share samples).
Representation = Tensor | Sequence[Tensor] | Mapping[str, Tensor | Sequence[Tensor]]

LAYOUTS = ('NCHW', 'NHWC', 'NLC')

#: (part of torch's message or of a node's name, what the user can do), the more special first.
_NOT_TWICE = (
    (
        'scaled_dot_product',
        'it uses fused scaled-dot-product attention; run the head inside '
        'torch.nn.attention.sdpa_kernel(SDPBackend.MATH)',
    ),
    ('CompiledFunction', 'it is compiled; leave the head out of torch.compile (the encoder may be compiled)'),
    ('aot_autograd', 'it is compiled; leave the head out of torch.compile (the encoder may be compiled)'),
    ('use_reentrant', 'it uses re-entrant checkpointing; call checkpoint(..., use_reentrant=False)'),
    ('Checkpointing is not compatible', 'it uses re-entrant checkpointing; call checkpoint(..., use_reentrant=False)'),
    ('SyncBatchNorm', 'it contains SyncBatchNorm; use BatchNorm or GroupNorm in the heads (the encoder may keep it)'),
    ('once_differentiable', 'it contains an autograd.Function marked once_differentiable; replace that operation'),
    ('ouble backward', 'one of its operations has no second derivative; replace that operation'),
    ('is not implemented', 'one of its operations has no second derivative; replace that operation'),
)


def task_saliency(
    losses: Mapping[str, Tensor] | Sequence[Tensor],
    representation: Representation,
    scale: float | Tensor = 1.0,
    *,
    layout: str = 'NCHW',
    num_prefix_tokens: int = 0,
    slices: Mapping[str, slice] | Sequence[slice] | None = None,
) -> Tensor | list[Tensor]:
    """Gradient of each task's loss with respect to the shared representation (Rep-MTL, Eq. 3), differentiable again.

    Levels of which one is computed from another must be passed as :func:`identity_views` of them, which the heads read:
    otherwise the gradient of a shallow level also runs through the encoder.

    Args:
        losses: T scalars, or {task: scalar}.
        representation: The very tensor(s) that the heads read: B x C, B x C x ``*spatial``, B x ``*spatial`` x C or
            B x N x C, a list of them (levels), or {task: one of these} for tasks with samples of their own.
        scale: The losses are multiplied by it before they are differentiated, which keeps float16 gradients
            representable. The result is divided by it.
        layout: ``'NCHW'`` (channels second), ``'NHWC'`` (channels last) or ``'NLC'`` (tokens).
        num_prefix_tokens: Leading tokens (class, registers) that are left out; ``'NLC'`` only.
        slices: The rows of each task in ``representation``, where one tensor holds the batches of all tasks.

    Returns:
        ``(T, B, C, *spatial)``, float32 (float64 for a float64 representation); a list of these for several levels.
        Tasks with samples of their own are paired by position, on the length that all have.

    Raises:
        ValueError: A loss that does not depend on the representation or a head that cannot be differentiated.
    """
    losses = name_losses(losses)
    if slices is not None and not isinstance(slices, Mapping):
        slices = dict(zip(losses, slices, strict=True))
    sources = sources_of_tasks(losses, representation)
    gradients = differentiate(losses, sources, dict.fromkeys(losses, scale))
    levels = stack_levels(gradients, layout, num_prefix_tokens, slices)
    if isinstance(scale, Tensor) or scale != 1:
        levels = [level / scale for level in levels]
    first = next(iter(representation.values())) if isinstance(representation, Mapping) else representation
    return levels[0] if isinstance(first, Tensor) else levels


def identity_views(representation: Representation) -> Representation:
    """The same values as graph nodes of their own: hand these to the heads, and the originals to deeper layers."""
    if isinstance(representation, Mapping):
        return {task: _views(part) for task, part in representation.items()}
    return _views(representation)


def _views(part: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
    return part.view_as(part) if isinstance(part, Tensor) else [level.view_as(level) for level in part]


def name_losses(losses: Mapping[str, Tensor] | Sequence[Tensor]) -> dict[str, Tensor]:
    """The losses as {task: scalar}; the tasks of a sequence are called '0', '1', ..."""
    named = dict(losses) if isinstance(losses, Mapping) else {str(index): loss for index, loss in enumerate(losses)}
    if not named:
        raise ValueError('no task losses: pass at least one')
    for task, loss in named.items():
        if loss.numel() != 1:
            raise ValueError(f'the loss of task {task!r} must be a scalar, got shape {tuple(loss.shape)}')
    return {task: loss.reshape(()) for task, loss in named.items()}


def sources_of_tasks(losses: Mapping[str, Tensor], representation: Representation) -> dict[str, list[Tensor]]:
    """The tensors, one per level, that each task's loss is differentiated by."""
    if not isinstance(representation, Mapping):
        shared = [representation] if isinstance(representation, Tensor) else list(representation)
        if not shared:
            raise ValueError('the representation is an empty list: pass at least one level')
        return dict.fromkeys(losses, shared)
    missing = [task for task in losses if task not in representation]
    if missing:
        raise ValueError(f'no representation for the tasks {missing}: it has {sorted(representation)}')
    parts = {task: representation[task] for task in losses}
    sources = {task: [part] if isinstance(part, Tensor) else list(part) for task, part in parts.items()}
    if len({len(levels) for levels in sources.values()}) > 1:
        counts = {task: len(levels) for task, levels in sources.items()}
        raise ValueError(f'the tasks have different numbers of levels: {counts}')
    return sources


def differentiate(
    losses: Mapping[str, Tensor], sources: Mapping[str, list[Tensor]], factors: Mapping[str, float | Tensor]
) -> dict[str, list[Tensor]]:
    """Gradient of ``factors[task] * losses[task]`` at each level, in the graph, shape and dtype of that level.

    Raises:
        ValueError: A loss that depends on no level, gradients switched off, or a head that cannot be differentiated.
    """
    if not torch.is_grad_enabled():
        raise ValueError('task saliency differentiates the losses: call it outside torch.no_grad() and inference mode')
    gradients = {}
    for task, loss in losses.items():
        levels = sources[task]
        weight = torch.as_tensor(factors[task], dtype=loss.dtype, device=loss.device)
        usable = loss.requires_grad and all(level.requires_grad for level in levels)
        # Backward formulas follow the dtypes of the forward; autocast would lower some of them once more.
        with torch.autocast(loss.device.type, enabled=False), _explain(task):
            found = (
                torch.autograd.grad(loss, levels, weight, create_graph=True, allow_unused=True) if usable else [None]
            )
        if all(gradient is None for gradient in found):
            raise ValueError(
                f'the loss of task {task!r} does not depend on the representation: its head must read the '
                'very tensor that is passed as representation, and that tensor must require grad'
            )
        gradients[task] = [
            torch.zeros_like(level) if gradient is None else gradient
            for level, gradient in zip(levels, found, strict=True)
        ]
    return gradients


def stack_levels(
    gradients: Mapping[str, list[Tensor]],
    layout: str = 'NCHW',
    num_prefix_tokens: int = 0,
    slices: Mapping[str, slice] | None = None,
) -> list[Tensor]:
    """Brings the gradients of all tasks into one ``(T, B, C, *spatial)`` tensor per level, in float32 or float64."""
    levels = []
    for maps in zip(*gradients.values(), strict=True):
        parts = dict(zip(gradients, maps, strict=True))
        if slices is not None:
            absent = [task for task in parts if task not in slices]
            if absent:
                raise ValueError(f'no slice for the tasks {absent}: slices has {sorted(slices)}')
            parts = {task: part[slices[task]] for task, part in parts.items()}
        parts = {task: _channels_second(part, layout, num_prefix_tokens) for task, part in parts.items()}
        shapes = {task: tuple(part.shape[1:]) for task, part in parts.items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(f'samples are paired by position, which needs maps of one size, got {shapes}')
        length = min(len(part) for part in parts.values())
        stacked = torch.stack([part[:length] for part in parts.values()])
        levels.append(stacked if stacked.dtype == torch.float64 else stacked.float())
    return levels


def _channels_second(gradient: Tensor, layout: str, num_prefix_tokens: int) -> Tensor:
    """The B x C x ``*spatial`` view of a gradient."""
    if layout == 'NLC':
        if gradient.dim() != 3 or gradient.shape[1] <= num_prefix_tokens:
            raise ValueError(
                f"layout 'NLC' with {num_prefix_tokens} prefix tokens expects B x N x C with more "
                f'tokens than that, got shape {tuple(gradient.shape)}'
            )
        return gradient[:, num_prefix_tokens:].transpose(1, 2)
    if layout not in LAYOUTS:
        raise ValueError(f'layout must be one of {LAYOUTS}, got {layout!r}')
    if num_prefix_tokens:
        raise ValueError(f"num_prefix_tokens={num_prefix_tokens} needs layout='NLC', got {layout!r}")
    # 'NLC' says B x N x C; reading that as NHWC or NCHW may be a mistake that no error would show.
    if gradient.dim() not in (2, 4):
        raise ValueError(
            f'layout {layout!r} expects a map with 4 dimensions or B x C, got shape '
            f'{tuple(gradient.shape)}; '
            "tokens (B x N x C) need layout='NLC'"
        )
    return gradient.movedim(-1, 1) if layout == 'NHWC' else gradient


# All functions that the decorator returns share its inner function's code.
_ONCE_WRAPPERS = {torch.autograd.function.once_differentiable(lambda ctx, grad: grad).__code__}


def check_twice_differentiable(
    losses: Mapping[str, Tensor], sources: Mapping[str, list[Tensor]], gradients: Mapping[str, list[Tensor]]
) -> None:
    """Differentiates the saliencies once more, to find a head that cannot be, and to say which.

    Without it the error would come out of the final backward without a name, or, for an ``autograd.Function`` that
    hides its second derivative, not at all. It cannot see such a function between operations that can be
    differentiated.

    Raises:
        ValueError: Naming the task and what to do.
    """
    for task, loss in losses.items():
        stops = [get_gradient_edge(level).node for level in sources[task]]
        head: list[Node] = list(_nodes([loss], stops))
        for node in head:
            if 'SyncBatchNorm' in node.name():
                raise ValueError(_message(task, node.name()))
            if _once_differentiable(node):
                raise ValueError(
                    f'the head of task {task!r} cannot be differentiated twice, which Rep-MTL needs: the '
                    f'backward of {node.name()} is marked once_differentiable; replace the operation'
                )
        dependent = [gradient for gradient in gradients[task] if gradient.requires_grad]
        if not dependent:
            hidden = [node.name() for node in head if isinstance(node, torch.autograd.function.BackwardCFunction)]
            if hidden:
                raise ValueError(
                    f'the saliency of task {task!r} is cut off from the graph by {sorted(set(hidden))}: '
                    'make its backward differentiable, or replace the operation'
                )
            continue  # The saliency of a piecewise linear head without weights is a constant indeed.
        # With the weights among the inputs every node of the double backward runs, also those that do not lead to Z.
        leaves = [node.variable for node in _nodes(dependent, stops) if node.name().endswith('AccumulateGrad')]
        with torch.autocast(loss.device.type, enabled=False), _explain(task):
            torch.autograd.grad(
                dependent,
                [*sources[task], *leaves],
                [torch.ones_like(part) for part in dependent],
                retain_graph=True,
                allow_unused=True,
            )


def _once_differentiable(node: Any) -> bool:
    """Whether ``node`` is of an ``autograd.Function`` whose backward is wrapped by ``once_differentiable``.

    Torch cuts the graph without an error where the gradient that arrives there is a constant (that of a mean).
    """
    function = getattr(getattr(type(node), '_forward_cls', None), 'backward', None)
    while function is not None:
        if getattr(function, '__code__', None) in _ONCE_WRAPPERS:
            return True
        function = getattr(function, '__wrapped__', None)
    return False


def _nodes(outputs: Sequence[Tensor], stops: Sequence[Any]) -> Iterator[Any]:
    """The nodes of the graph of ``outputs`` down to, and without, ``stops``."""
    pending: list[Node | None] = [get_gradient_edge(output).node for output in outputs]
    seen = set(stops)
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        pending += [following for following, _ in node.next_functions]


def _message(task: str, found: str) -> str | None:
    named = re.search(r'double backwards? on (\w+)', found)
    special = [(named[0], f'its operation {named[1]} has no second derivative; replace it')] if named else []
    for pattern, advice in (*special, *_NOT_TWICE):
        if pattern in found:
            return f'the head of task {task!r} cannot be differentiated twice, which Rep-MTL needs: {advice}'
    return None


@contextmanager
def _explain(task: str) -> Iterator[None]:
    """Turns torch's errors about missing second derivatives into one that names the task; lets all others pass."""
    try:
        yield
    except RuntimeError as error:
        message = _message(task, str(error))
        if message is None:
            raise
        raise ValueError(f'{message}. torch says: {error}') from error
