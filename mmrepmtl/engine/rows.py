"""The per-task gradients of the shared parameters: one buffer that lives as long as the run."""

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
            rows = self.buffer[0, :, columns]
            total = rows[0] * weights[0]
            for row, weight in zip(rows[1:], weights[1:], strict=True):
                total.add_(row, alpha=weight)
            accumulate([p], [total.view_as(p)])


@torch.no_grad()
def accumulate(parameters: Sequence[nn.Parameter], grads: Sequence[Tensor | None]) -> None:
    """Adds gradients to ``.grad``, as backward does; the tensors of the first ones become it.

    Gradients of ``torch.autograd.grad`` go through :func:`apart` before.
    """
    for parameter, grad in zip(parameters, grads, strict=True):
        if grad is None:
            continue
        if parameter.grad is None:
            parameter.grad = grad.detach().to(parameter.dtype)
        else:
            parameter.grad.add_(grad)


def apart(grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Copies the gradients that share memory with each other or in themselves.

    ``torch.autograd.grad`` returns one tensor for both terms of ``w1 + w2``, and for ``w.sum()`` one number seen many
    times: what then changes ``.grad`` in place (clipping, a scaler) would act on it more than once.
    """
    owners = Counter(grad.untyped_storage().data_ptr() for grad in grads if grad is not None)
    return [
        grad
        if grad is None or owners[grad.untyped_storage().data_ptr()] == 1 and _is_dense(grad)
        else grad.clone(memory_format=torch.contiguous_format)
        for grad in grads
    ]


def _is_dense(grad: Tensor) -> bool:
    layouts = [torch.contiguous_format]
    layouts += [torch.channels_last] * (grad.dim() == 4) + [torch.channels_last_3d] * (grad.dim() == 5)
    return any(grad.is_contiguous(memory_format=layout) for layout in layouts)


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
                p.grad = mean.clone()
            else:
                p.grad.copy_(mean)
