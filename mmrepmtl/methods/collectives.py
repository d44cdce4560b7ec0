"""The parts of torch.distributed that the methods use, and exact float32 products. No collective runs in a backward.

Dimensions: R ranks, K values, N numbers of each rank.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor


def num_processes() -> int:
    """World size, 1 outside torch.distributed."""
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 1


def own_group() -> Any:
    """A new group of all processes with the default group's timeout; None where there is one process.

    All processes have to call it together. torch gives a new group its own default of half an hour instead.
    """
    if num_processes() == 1:
        return None
    return torch.distributed.new_group(timeout=_timeout(torch.distributed.group.WORLD))


def _timeout(group: Any) -> timedelta | None:
    """The bound of a group's collectives; None if this version of torch does not tell."""
    device = torch.device('cuda', torch.cuda.current_device()) if torch.cuda.is_available() else torch.device('cpu')
    try:
        timeout: timedelta | None = group._get_backend(device).options._timeout
    except (AttributeError, RuntimeError):  # another version of torch, or a group of another kind of device
        return None
    return timeout


class Ranks:
    """The processes that share a global batch: one in a plain loop, all of ``process_group`` under torch.distributed.

    Args:
        process_group: The group; ``None`` is the default group.
        enabled: ``False`` makes this process the only one.
    """

    def __init__(self, process_group: Any = None, enabled: bool = True) -> None:
        self.group = process_group
        ready = enabled and torch.distributed.is_available() and torch.distributed.is_initialized()
        self.size = torch.distributed.get_world_size(process_group) if ready else 1
        self.rank = torch.distributed.get_rank(process_group) if ready else 0
        if self.rank < 0:
            raise ValueError('this process is not a member of process_group: pass a group that contains it')

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks of ``values`` (same shape on each rank), detached."""
        total = values.detach().clone()
        if self.size > 1:
            torch.distributed.all_reduce(total, group=self.group)
        return total

    def sum_and_sizes(
        self, values_K: Tensor, size: int, same: Mapping[str, int] | None = None
    ) -> tuple[Tensor, list[int]]:
        """:meth:`sum` of ``values_K`` and the ``size`` of every rank, in one collective.

        Args:
            values_K: (K,), the same K on each rank.
            size: Number of rows of this rank.
            same: {description: number} that have to be equal on all ranks, the same descriptions on each.

        Raises:
            ValueError: On all ranks, if a number in ``same`` differs.
        """
        if self.size == 1:
            return values_K.detach(), [size]
        numbers = [size, *(same or {}).values()]
        table_RN = values_K.new_zeros(self.size, len(numbers))
        table_RN[self.rank] = table_RN.new_tensor(numbers)
        total = self.sum(torch.cat([values_K.detach(), table_RN.flatten()]))
        sizes, *columns = total[len(values_K) :].view(self.size, -1).T.round().long().tolist()
        for description, column in zip(same or {}, columns, strict=True):
            if len(set(column)) > 1:
                raise ValueError(f'{description} must be the same on all ranks, got {column} (by rank)')
        return total[: len(values_K)], sizes

    def gather_rows(self, rows: Tensor, sizes: list[int]) -> Tensor:
        """Concatenates the rows of all ranks in rank order, detached.

        Args:
            rows: (sizes[rank], K), the same K on each rank.
            sizes: Number of rows of each rank.
        """
        if self.size == 1:
            return rows.detach()
        # One shape on all ranks, because not every backend gathers unequal ones.
        padded = rows.new_zeros(max(sizes), rows.shape[1])
        padded[: len(rows)] = rows.detach()
        received = [torch.empty_like(padded) for _ in sizes]
        torch.distributed.all_gather(received, padded, group=self.group)
        return torch.cat([part[:size] for part, size in zip(received, sizes, strict=True)])


def _product_settings() -> Iterator[tuple[Any, str, Any]]:
    """Lists each switch that now lets float32 products lose digits: (module, attribute, exact value)."""
    for backend in (torch.backends.cuda, torch.backends.mkldnn):
        matmul = getattr(backend, 'matmul', None)
        if matmul is None:
            continue
        # torch before 2.9 has allow_tf32 only, and later versions refuse to read it once the two were mixed.
        if hasattr(matmul, 'fp32_precision'):
            if matmul.fp32_precision not in ('ieee', 'none'):
                yield matmul, 'fp32_precision', 'ieee'
        elif matmul.allow_tf32:
            yield matmul, 'allow_tf32', False


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Autocast off on ``device_type`` and float32 products in float32 (no TF32); restores the settings on exit."""
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device_type, enabled=False))
        for module, attribute, exact in list(_product_settings()):
            stack.callback(setattr, module, attribute, getattr(module, attribute))
            setattr(module, attribute, exact)
        yield
