"""The common parts of aggregators that need full gradients: state shaped by the first call, and sums in pieces.

The rule of memory for all of them: ``gradients_TP`` belongs to the caller and is only read; state is updated in place;
beside it there is one (P,) result, and every other temporary covers :data:`COLUMNS` columns at most, few enough for a
processor's cache. Factors and norms are float64: the squares of gradients between 1e-20 and 1e20 do not fit in float32.
Rows are multiplied by them in their own precision.

Dimensions: T tasks, P elements of the shared parameters, C columns of one piece of them, L layers (tensors
of them).
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor

from .base import Aggregator

#: Columns that are worked on at once.
COLUMNS = 2**18


class StatefulAggregator(Aggregator):
    """Base of aggregators whose state has the shape of the gradients, which only the first call or a checkpoint tells.

    State is made of buffers that do not exist before that; loading a state replaces them, shapes included.

    Args:
        names: Names of the buffers.
        level: As in :class:`Aggregator`.
        weight_heads: As in :class:`Aggregator`.
    """

    keeps_gradients = True

    def __init__(
        self, names: Sequence[str], level: Literal['parameter', 'representation'], weight_heads: bool | None
    ) -> None:
        super().__init__(level, weight_heads)
        for name in names:
            self.register_buffer(name, None)

    def state(
        self,
        name: str,
        shape: Sequence[int],
        device: torch.device,
        dtype: torch.dtype = torch.float64,
        fill: float = 0.0,
    ) -> Tensor:
        """The buffer ``name`` on ``device``, filled with ``fill`` if it is new.

        Raises:
            ValueError: If it exists in another shape.
        """
        buffer: Tensor | None = getattr(self, name)
        if buffer is None:
            buffer = torch.full(tuple(shape), fill, dtype=dtype, device=device)
        elif buffer.shape != tuple(shape):
            raise ValueError(
                f'{type(self).__name__}: its state {name} has the shape {tuple(buffer.shape)}, the gradients ask for '
                f'{tuple(shape)}; tasks and shared parameters may not change during a run, start a new one instead'
            )
        buffer = buffer.to(device)
        setattr(self, name, buffer)
        return buffer

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in self._buffers:
            saved = state_dict.get(prefix + name)
            setattr(self, name, None if saved is None else torch.empty_like(saved))
        super()._load_from_state_dict(state_dict, prefix, *args)


class LayerwiseAggregator(StatefulAggregator):
    """Base of stateful aggregators that treat every shared parameter tensor ("layer") separately.

    Args:
        names: Names of the buffers.
        level: As in :class:`Aggregator`.
        weight_heads: As in :class:`Aggregator`.
    """

    ends_L: Tensor | None

    def __init__(
        self, names: Sequence[str], level: Literal['parameter', 'representation'], weight_heads: bool | None
    ) -> None:
        super().__init__(names, level, weight_heads)
        self.register_buffer('ends_L', None)
        self._sizes: tuple[int, ...] | None = None
        self._checked: tuple[int, ...] | None = None

    def setup(self, num_tasks: int, sizes: Sequence[int] | None = None) -> None:
        """Tells the layers: the number of elements of each, in the order of the columns. Idempotent."""
        if sizes is not None:
            self._sizes = tuple(sizes)

    def layers(self, gradients_TP: Tensor) -> tuple[int, ...]:
        """The sizes of the layers; all columns are one where :meth:`setup` told none.

        Raises:
            ValueError: If they do not add up to P, or are not those of the state.
        """
        sizes = self._sizes or (gradients_TP.shape[1],)
        if sum(sizes) != gradients_TP.shape[1]:
            raise ValueError(
                f'{type(self).__name__}: setup was told layers of {sum(sizes)} elements in all, the gradients have '
                f'{gradients_TP.shape[1]}'
            )
        if self._checked != sizes:  # once, because the comparison waits for the device
            ends = list(accumulate(sizes))
            known = ends if self.ends_L is None else self.ends_L.tolist()
            if known != ends:
                raise ValueError(
                    f'{type(self).__name__}: its state is for {len(known)} layers of {known[-1]} elements in all, the '
                    f'gradients now have {len(ends)} of {ends[-1]}; the shared parameters may not change during a run'
                )
            self.ends_L = torch.tensor(ends, device=gradients_TP.device)
            self._checked = sizes
        return sizes

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self._checked = None
        super()._load_from_state_dict(state_dict, prefix, *args)


def pieces(size: int, first: int = 0) -> Iterator[slice]:
    """Slices of at most :data:`COLUMNS` columns that cover ``size`` of them from ``first`` on."""
    return (slice(start, min(start + COLUMNS, first + size)) for start in range(first, first + size, COLUMNS))


def layer_pieces(sizes: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """The index of each layer with the :func:`pieces` of its columns."""
    for layer, (size, end) in enumerate(zip(sizes, accumulate(sizes), strict=True)):
        for piece in pieces(size, end - size):
            yield layer, piece


def magnitudes(rows_TP: Tensor) -> Tensor:
    """The largest magnitude in each row, (T,); not finite where any element is not."""
    # One reduction for each row: along a dimension of a matrix it takes twenty times as long on a CPU.
    return torch.stack([torch.stack(row_P.aminmax()).abs().amax() for row_P in rows_TP])


def row_norms(rows_TP: Tensor) -> Tensor:
    """The Euclidean norm of each row, (T,) float64."""
    squares_T = rows_TP.new_zeros(len(rows_TP), dtype=torch.float64)
    for piece in rows_TP.split(COLUMNS, dim=1):
        squares_T += piece.double().square().sum(1)
    return squares_T.sqrt()


def layer_norms(rows_TP: Tensor, sizes: Sequence[int]) -> Tensor:
    """The Euclidean norm of each row in each layer, (T, L) float64."""
    return torch.stack([row_norms(layer_TC) for layer_TC in rows_TP.split(list(sizes), dim=1)], dim=1)


def labelled_tasks(sizes_T: Tensor) -> list[int]:
    """The tasks whose gradient is not exactly zero, by its norm or :func:`magnitudes`."""
    return sizes_T.nonzero().flatten().tolist()


def weighted_sum(weights_T: Tensor, rows_TP: Tensor) -> Tensor:
    """``sum_t w_t row_t`` (P,), in the precision of the rows whatever the settings of matmul are."""
    combined_P = torch.empty_like(rows_TP[0])
    weights_T = weights_T.to(rows_TP.dtype)
    for piece in pieces(rows_TP.shape[1]):
        scaled_sum(weights_T, rows_TP[:, piece], combined_P[piece])
    return combined_P


def scaled_sum(weights_T: Tensor, rows_TC: Tensor, out_C: Tensor) -> None:
    """Writes ``sum_t w_t row_t`` of one piece to ``out_C``; all three of one dtype."""
    torch.mul(rows_TC[0], weights_T[0], out=out_C)
    for row_C, weight in zip(rows_TC[1:], weights_T[1:], strict=True):
        out_C.addcmul_(row_C, weight)


def check_fractions(method: str, **values: float) -> None:
    """Refuses rates outside [0, 1).

    Raises:
        ValueError: With the name of the first that is.
    """
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f'{method}: {name} must be in [0, 1), got {value}')
