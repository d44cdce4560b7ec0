"""Writes gradients to ``.grad``: in the layout of the parameter, in memory of their own, averaged over ranks."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from mmrepmtl.engine.aliases import Gradients, ProcessGroup
from mmrepmtl.methods.collectives import num_processes

#: Elements that are reduced over ranks at once. They are copied for it, so they are few beside an encoder's gradients.
BUCKET = 2**22


def empty_gradient(parameter: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Allocates a gradient of ``parameter``: with its strides if it is dense, else contiguous.

    The fused optimizers go through weights and gradients by their place in memory. If strides differ, a weight gets the
    gradient of another one.
    """
    dtype = parameter.dtype if dtype is None else dtype
    return torch.empty_strided(parameter.shape, gradient_strides(parameter), dtype=dtype, device=parameter.device)


def in_layout_of(grad: Tensor, parameter: Tensor) -> Tensor:
    """Returns the gradient with the strides of :func:`empty_gradient`.

    It is the gradient itself, a view if only dimensions of size 1 have other strides, or a copy.
    """
    strides = gradient_strides(parameter)
    if grad.stride() == strides:
        return grad
    if _same_memory_order(grad, strides):
        return grad.as_strided(grad.shape, strides)
    return empty_gradient(parameter, grad.dtype).copy_(grad)


def segment_in_layout_of(segment_P: Tensor, parameter: Tensor) -> Tensor:
    """Returns a parameter's part of a flat gradient as a view with the parameter's strides; reorders it in place.

    This copies the gradient of one parameter at a time, never all of them.
    """
    part, strides = segment_P.view_as(parameter), gradient_strides(parameter)
    view = segment_P.as_strided(parameter.shape, strides, segment_P.storage_offset())
    return view if _same_memory_order(part, strides) else view.copy_(part.clone())


def gradient_strides(parameter: Tensor) -> tuple[int, ...]:
    """The strides that the gradient of a parameter gets: the parameter's own if it is dense, else row by row."""
    if _fills_its_memory(parameter):
        return parameter.stride()
    sizes = parameter.shape
    return tuple(math.prod(max(n, 1) for n in sizes[i + 1 :]) for i in range(len(sizes)))


def _same_memory_order(grad: Tensor, strides: Sequence[int]) -> bool:
    return all(a == b or n == 1 for a, b, n in zip(grad.stride(), strides, grad.shape, strict=True))


def _fills_its_memory(tensor: Tensor) -> bool:
    """Whether the elements lie side by side in memory, each once ("non-overlapping and dense")."""
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return True


@torch.no_grad()
def keep_layouts(parameters: Sequence[Tensor]) -> None:
    """Gives every ``.grad`` the strides of its dense parameter.

    A backward of torch gives dimensions of size 1 any stride, and adds to a ``.grad`` of any strides.
    """
    for p in parameters:
        if p.grad is not None and p.grad.layout is torch.strided and p.grad.stride() != p.stride():
            p.grad = in_layout_of(p.grad, p)


@torch.no_grad()
def accumulate(parameters: Sequence[nn.Parameter], grads: Gradients) -> None:
    """Adds gradients to ``.grad``, as backward does. A parameter without ``.grad`` gets the tensor itself.

    Gradients of ``torch.autograd.grad`` go through :func:`in_own_memory` before. A list is emptied on the way, so that
    a gradient which has to be copied does not live twice.
    """
    for i, parameter in enumerate(parameters):
        grad = grads[i]
        if isinstance(grads, list):
            grads[i] = None
        if grad is None:
            continue
        if parameter.grad is None:
            parameter.grad = in_layout_of(grad.detach().to(parameter.dtype), parameter)
        else:
            parameter.grad.add_(grad)


def clip_gradients(wrapper: OptimWrapper, parameters: Sequence[nn.Parameter], prefix: str = '') -> None:
    """Clips gradients by the settings of an mmengine optim wrapper, and logs their norm before it under ``prefix``."""
    params = [p for p in parameters if p.requires_grad and p.grad is not None]
    norm = wrapper.clip_func(params, **wrapper.clip_grad_kwargs) if params else None
    if norm is not None:
        wrapper.message_hub.update_scalar(f'train/{prefix}{wrapper.grad_name}', float(norm))


def make_dense(parameters: Sequence[nn.Parameter]) -> None:
    """Makes every sparse ``.grad`` dense: dense combined gradients are added to it."""
    for p in parameters:
        if p.grad is not None and p.grad.layout is not torch.strided:
            p.grad = in_layout_of(p.grad.to_dense(), p)


def in_own_memory(grads: Gradients) -> list[Tensor | None]:
    """Copies the gradients that share memory with each other or within themselves, and makes sparse ones dense.

    ``torch.autograd.grad`` returns one tensor for both terms of ``w1 + w2``, and for ``w.sum()`` one number that all
    elements share. Clipping or a scaler, which change ``.grad`` in place, would act on such memory more than once.
    """
    grads = [g if g is None or g.layout is torch.strided else g.to_dense() for g in grads]
    owners = Counter(grad.untyped_storage().data_ptr() for grad in grads if grad is not None)
    return [
        grad
        if grad is None or owners[grad.untyped_storage().data_ptr()] == 1 and _fills_its_memory(grad)
        else grad.clone(memory_format=torch.contiguous_format)
        for grad in grads
    ]


def flatten(grads: Gradients, parameters: Sequence[Tensor]) -> Tensor:
    """Joins the gradients of ``parameters`` to one row (P,), with zeros for those that have none."""
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(grads, parameters, strict=True)]
    )


def in_buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yields groups of neighbours of one dtype with at most :data:`BUCKET` elements; a larger tensor is alone."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        full = sum(other.numel() for other in bucket) + tensor.numel() > BUCKET
        if bucket and (full or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def unflatten(row: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """The inverse of :func:`flatten`."""
    return [part.view_as(p) for part, p in zip(row.split([p.numel() for p in parameters]), parameters, strict=True)]


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter], group: ProcessGroup) -> None:
    """Replaces every ``.grad`` by its mean over ranks; a parameter that no rank used keeps None."""
    if num_processes() == 1:
        return
    used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=parameters[0].device)
    dist.all_reduce(used, group=group)
    wanted = [p for p, count in zip(parameters, used.tolist(), strict=True) if count]
    for bucket in in_buckets(wanted):
        flat = flatten([p.grad for p in bucket], bucket)
        dist.all_reduce(flat, group=group)
        flat /= num_processes()
        for p, mean in zip(bucket, unflatten(flat, bucket), strict=True):
            if p.grad is None:
                p.grad = empty_gradient(p).copy_(mean)
            else:
                p.grad.copy_(mean)
