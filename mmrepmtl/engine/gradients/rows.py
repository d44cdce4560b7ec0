"""The per-task gradients of the shared parameters: one buffer that lives as long as the run."""

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import nn

from mmrepmtl.engine.aliases import Gradients, ProcessGroup, State
from mmrepmtl.engine.gradients.writing import accumulate, empty_gradient
from mmrepmtl.methods.collectives import num_processes


class GradientRows:
    """T rows (for each of ``num_batches`` independent batches) of the gradients of the shared parameters.

    The buffer is allocated once. A step then keeps T copies of the shared gradient here and one in ``.grad``, and
    none of them comes from fresh memory. The columns are the parameters in the order of the model. Parameters that are
    used for the first time later in the run are appended.

    Args:
        num_batches: Independent batches per step.
        fixed: Name of a method that keeps state for each parameter, so that the columns may not change once there are
            some; None if they may.
        group: Process group of the reductions.

    Attributes:
        buffer: The rows, (num_batches, T, P); it has no element before the first parameters are appended.
    """

    def __init__(self, num_batches: int, fixed: str | None, group: ProcessGroup) -> None:
        self.num_batches, self.fixed, self.group = num_batches, fixed, group
        self.parameters: list[nn.Parameter] = []
        self.buffer = torch.empty(num_batches, 0, 0)
        self._starts: dict[int, int] = {}
        self._used: set[int] = set()
        self._written: set[tuple[int, int]] = set()
        self._pending: list[dist.Work] = []

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
        self.append(new, num_tasks)

    def append(self, new: Sequence[nn.Parameter], num_tasks: int) -> None:
        """Makes room for parameters after the columns that there are."""
        start = sum(self.sizes)
        for p in new:
            self._starts[id(p)] = start
            start += p.numel()
        num_kept = self.buffer.shape[-1]
        self.parameters += new
        dtype = torch.promote_types(new[0].dtype, torch.float32)
        grown = torch.zeros(self.num_batches, num_tasks, start, dtype=dtype, device=new[0].device)
        if num_kept:
            grown[..., :num_kept] = self.buffer
        self.buffer = grown

    def slices(self) -> Iterator[tuple[nn.Parameter, slice]]:
        """Every parameter with its columns."""
        for p in self.parameters:
            start = self._starts[id(p)]
            yield p, slice(start, start + p.numel())

    def written(self) -> Iterator[tuple[nn.Parameter, slice]]:
        """:meth:`slices` of the parameters that the window used on any rank; the others get no gradient."""
        return ((p, columns) for p, columns in self.slices() if id(p) in self._used)

    def add(self, batch: int, task: int, parameters: Sequence[nn.Parameter], grads: Gradients) -> None:
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
            work = dist.all_reduce(self.buffer[batch, task], group=self.group, async_op=True)
            if work is not None:  # None on a rank outside the group
                self._pending.append(work)

    def wait(self) -> None:
        """Waits for the reductions that were started."""
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

    def state_dict(self, index: Mapping[int, int]) -> State:
        """Returns the rows that this rank has written so far; ``index`` is {id of a parameter: its number}."""
        return dict(
            used=[index[key] for key in sorted(self._used, key=index.__getitem__)],
            rows=[(batch, t, self.buffer[batch, t].cpu()) for batch, t in sorted(self._written)],
        )

    def load_state_dict(self, state: State, parameters: Sequence[nn.Parameter]) -> None:
        """Restores :meth:`state_dict`, after :meth:`append`; ``parameters`` are in the order of its numbers."""
        self._used = {id(parameters[i]) for i in state['used']}
        for batch, t, row in state['rows']:
            self.buffer[batch, t] = row.to(self.buffer.device)
            self._written.add((batch, t))
