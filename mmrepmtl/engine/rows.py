"""The per-task gradients of the shared parameters: one buffer that lives as long as the run."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmrepmtl.methods.collectives import num_processes

#: Elements that are reduced over ranks at once: few beside an encoder's gradients, which are not copied as a whole.
BUCKET = 2**22


class GradientRows:
    """T rows (for each of ``num_batches`` independent batches) of the gradients of the shared parameters.

    The buffer is allocated once, so that a step keeps T copies of the shared gradient here and one in ``.grad``, and
    none of them comes from fresh memory. The columns are the parameters in the order of the model; ones that are used
    for the first time later in the run are appended.

    Args:
        num_batches: Independent batches per step.
        fixed: Why the columns may not change once there are some (the name of a method that keeps state for each), or
            None.
        group: Process group of the reductions.
    """

    def __init__(self, num_batches: int, fixed: str | None, group) -> None:
        self.num_batches, self.fixed, self.group = num_batches, fixed, group
        self.parameters: list[nn.Parameter] = []
        self.buffer: Tensor | None = None  # (num_batches, T, P)
        self._starts: dict[int, int] = {}
        self._used: set[int] = set()
        self._written: set[tuple[int, int]] = set()
        self._pending: list = []

    @property
    def sizes(self) -> list[int]:
        """Elements of each parameter, in the order of the columns."""
        return [p.numel() for p in self.parameters]

    @property
    def in_use(self) -> bool:
        """Whether the window used any of the parameters, on any rank."""
        return bool(self._used)

    def prepare(self, used: Sequence[nn.Parameter], candidates: Sequence[nn.Parameter], num_tasks: int) -> None:
        """Makes room for the parameters that this micro-batch uses on any rank.

        Args:
            used: Those used on this rank.
            candidates: All trainable parameters, the same on every rank.
            num_tasks: T.

        Raises:
            ValueError: If there are new ones and the method cannot take them.
        """
        if num_processes() > 1:
            here = {id(p) for p in used}
            flags = torch.tensor([id(p) in here for p in candidates], dtype=torch.float32, device=candidates[0].device)
            dist.all_reduce(flags, group=self.group)
            used = [p for p, count in zip(candidates, flags.tolist(), strict=True) if count]
        self._used.update(id(p) for p in used)
        new = [p for p in used if id(p) not in self._starts]
        if not new:
            return
        if self.fixed and self.parameters:
            raise ValueError(
                f'{self.fixed} keeps state for each shared parameter, and {len(new)} parameters of the model were used '
                'for the first time after the first step; make the encoder use the same parameters in every iteration'
            )
        start = sum(self.sizes)
        for p in new:
            self._starts[id(p)] = start
            start += p.numel()
        self.parameters += new
        dtype = torch.promote_types(new[0].dtype, torch.float32)
        grown = torch.zeros(self.num_batches, num_tasks, start, dtype=dtype, device=new[0].device)
        if self.buffer is not None:
            grown[..., : self.buffer.shape[-1]] = self.buffer
        self.buffer = grown

    def slices(self) -> Iterator[tuple[nn.Parameter, slice]]:
        """Every parameter with its columns."""
        for p in self.parameters:
            start = self._starts[id(p)]
            yield p, slice(start, start + p.numel())

    def written(self) -> Iterator[tuple[nn.Parameter, slice]]:
        """:meth:`slices` of what the window used on any rank: the others get no gradient, as in plain training."""
        return ((p, columns) for p, columns in self.slices() if id(p) in self._used)

    def add(self, batch: int, task: int, parameters: Sequence[nn.Parameter], grads: Sequence[Tensor | None]) -> None:
        """Adds one task's gradients of a micro-batch to its row; the first ones of a window replace what was there."""
        if not self.parameters:  # a frozen encoder
            return
        row = self.buffer[batch, task]
        first = (batch, task) not in self._written
        self._written.add((batch, task))
        given = {id(p): grad for p, grad in zip(parameters, grads, strict=True)}
        for p, columns in self.slices():
            grad = given.get(id(p))
            if grad is not None:
                part = row[columns].view_as(p)
                part.copy_(grad) if first else part.add_(grad)
            elif first:
                row[columns].zero_()

    def reduce(self, batch: int, task: int) -> None:
        """Starts the sum over ranks of a finished row, which goes on while the next task's backward runs."""
        if num_processes() > 1 and self.parameters:
            self._pending.append(dist.all_reduce(self.buffer[batch, task], group=self.group, async_op=True))

    def wait(self) -> None:
        """Ends the reductions that were started."""
        for work in self._pending:
            work.wait()
        self._pending = []

    def clear(self) -> None:
        """Ends the window; the memory is kept."""
        self.wait()
        self._written, self._used = set(), set()

    def combine(self, weights: Sequence[float]) -> None:
        """Adds the weighted sum of the first batch's rows to each ``.grad``, without a copy of all columns."""
        for p, columns in self.written():
            rows = [row.view_as(p) for row in self.buffer[0, :, columns]]
            total = torch.mul(rows[0], weights[0], out=empty_gradient(p, rows[0].dtype))
            for row, weight in zip(rows[1:], weights[1:], strict=True):
                total.add_(row, alpha=weight)
            accumulate([p], [total])


def empty_gradient(parameter: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for a gradient of ``parameter``, with its strides where it is dense and contiguous elsewhere.

    The fused optimizers go through weights and gradients by their place in memory: where strides differ, a weight gets
    the gradient of another one.
    """
    dtype = parameter.dtype if dtype is None else dtype
    return torch.empty_strided(parameter.shape, gradient_strides(parameter), dtype=dtype, device=parameter.device)


def in_layout_of(grad: Tensor, parameter: Tensor) -> Tensor:
    """The gradient with the strides of :func:`empty_gradient`: itself, a view where only a dimension of size 1 has
    another stride, or a copy."""
    strides = gradient_strides(parameter)
    if grad.stride() == strides:
        return grad
    if _same_memory_order(grad, strides):
        return grad.as_strided(grad.shape, strides)
    return empty_gradient(parameter, grad.dtype).copy_(grad)


def segment_in_layout_of(segment_P: Tensor, parameter: Tensor) -> Tensor:
    """A parameter's part of a flat gradient as a view with the parameter's strides; reorders the part in place.

    A copy of one parameter's gradient is made, never one of all.
    """
    part, strides = segment_P.view_as(parameter), gradient_strides(parameter)
    view = segment_P.as_strided(parameter.shape, strides, segment_P.storage_offset())
    return view if _same_memory_order(part, strides) else view.copy_(part.clone())


def gradient_strides(parameter: Tensor) -> tuple[int, ...]:
    """The strides that the gradient of a parameter has: the parameter's where it is dense, else row by row."""
    if _fills_its_memory(parameter):
        return parameter.stride()
    sizes = parameter.shape
    return tuple(math.prod(max(n, 1) for n in sizes[i + 1 :]) for i in range(len(sizes)))


def _same_memory_order(grad: Tensor, strides: Sequence[int]) -> bool:
    return all(a == b or n == 1 for a, b, n in zip(grad.stride(), strides, grad.shape, strict=True))


def _fills_its_memory(tensor: Tensor) -> bool:
    """Whether no element lies twice in memory and none of it is left out ("non-overlapping and dense")."""
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return True


@torch.no_grad()
def keep_layouts(parameters: Sequence[Tensor]) -> None:
    """Gives every ``.grad`` the strides of its dense parameter.

    A backward of torch leaves the strides of dimensions of size 1 as they come, and adds to whatever ``.grad`` is
    there.
    """
    for p in parameters:
        if p.grad is not None and p.grad.layout is torch.strided and p.grad.stride() != p.stride():
            p.grad = in_layout_of(p.grad, p)


@torch.no_grad()
def accumulate(parameters: Sequence[nn.Parameter], grads: Sequence[Tensor | None]) -> None:
    """Adds gradients to ``.grad``, as backward does; the tensors of the first ones become it.

    Gradients of ``torch.autograd.grad`` go through :func:`apart` before. A list is emptied on the way, so that a
    gradient which has to be copied does not live twice.
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


def clip_gradients(wrapper, parameters: Sequence[nn.Parameter], prefix: str = '') -> None:
    """Clips by the settings of an mmengine optim wrapper, and logs the norm before it under ``prefix``."""
    params = [p for p in parameters if p.requires_grad and p.grad is not None]
    norm = wrapper.clip_func(params, **wrapper.clip_grad_kwargs) if params else None
    if norm is not None:
        wrapper.message_hub.update_scalar(f'train/{prefix}{wrapper.grad_name}', float(norm))


def densify(parameters: Sequence[nn.Parameter]) -> None:
    """Makes sparse ``.grad`` dense, as the combined gradients that are added to it are."""
    for p in parameters:
        if p.grad is not None and p.grad.layout is not torch.strided:
            p.grad = in_layout_of(p.grad.to_dense(), p)


def apart(grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Copies the gradients that share memory with each other or in themselves, and makes sparse ones dense.

    ``torch.autograd.grad`` returns one tensor for both terms of ``w1 + w2``, and for ``w.sum()`` one number seen many
    times: what then changes ``.grad`` in place (clipping, a scaler) would act on it more than once.
    """
    grads = [g if g is None or g.layout is torch.strided else g.to_dense() for g in grads]
    owners = Counter(grad.untyped_storage().data_ptr() for grad in grads if grad is not None)
    return [
        grad
        if grad is None or owners[grad.untyped_storage().data_ptr()] == 1 and _fills_its_memory(grad)
        else grad.clone(memory_format=torch.contiguous_format)
        for grad in grads
    ]


def flatten(grads: Sequence[Tensor | None], parameters: Sequence[nn.Parameter]) -> Tensor:
    """One row of all gradients, zeros where there is none."""
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(grads, parameters, strict=True)]
    )


def in_buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Groups of neighbours of one dtype with at most :data:`BUCKET` elements, or a single larger one."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        full = sum(other.numel() for other in bucket) + tensor.numel() > BUCKET
        if bucket and (full or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def unflatten(row: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """The inverse of :func:`flatten`."""
    return [part.view_as(p) for part, p in zip(row.split([p.numel() for p in parameters]), parameters, strict=True)]


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter], group) -> None:
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
