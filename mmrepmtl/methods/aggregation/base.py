"""The bases of the gradient aggregators.

Dimensions: T tasks, S the subset of them that has a gradient, P elements of the shared parameters, C columns of
one piece of them, B samples (at Z).
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmrepmtl.methods.facts import Facts

from .solvers import on_present_tasks

#: Columns of the gradients that are worked on at once in float64.
COLUMNS = 2**18


class Aggregator(nn.Module):
    """Base of gradient aggregators: T task gradients become the one gradient of the shared parameters.

    Called outside any trainer as ``aggregator(gradients_TP, losses_T)``. An aggregator that only needs the inner
    products of the gradients derives from :class:`GramianAggregator`; at representation level the trainer then reduces
    a T x T matrix only. Its random state, if any, is equal on all ranks. Everything that a resumed run needs is in
    ``state_dict()``. The class attributes below declare what it needs of the trainer, which knows no method by name.

    A row that is exactly zero is that of a task without a label in the batch (or without a gradient): no method may
    divide by its norm, and each documents what it does with it.

    Args:
        level: The place of the gradients: ``'parameter'`` (of the shared parameters) or ``'representation'`` (at Z, the
            encoder is then traversed once).
        weight_heads: Whether the weight of a task also multiplies the gradient of its own head, as if the method had
            weighted the losses; False leaves the heads unweighted. None is the convention of the method.
    """

    #: Levels that the method's definition allows.
    levels: tuple[str, ...] = ('parameter', 'representation')

    #: ``'own'``: takes log losses itself or needs positive ones, so that a second log transform is refused.
    loss_transform: Literal['any', 'own'] = 'any'

    #: The value of :attr:`weight_heads` where the config gives none.
    weights_heads_by_default: bool = False

    #: Whether the result is a weighted sum of the rows, with the weights returned.
    has_weights: bool = True

    #: Whether state is kept per shared parameter, so that their set may not change during a run.
    keeps_gradients: bool = False

    #: How many independent batches one step needs; with more than one, ``gradients`` is (num_batches, T, P).
    num_batches: int = 1

    #: ``'update'``: the result is the finished step of the shared parameters in units of the learning rate (the method
    #: is an optimizer), which must not pass through the run's optimizer again.
    returns: Literal['gradient', 'update'] = 'gradient'

    #: Cells of the tables in docs/methods.md; None for a method that is in no table.
    facts: Facts | None = None

    #: Names of the tasks, for errors; the trainer sets them.
    task_names: Sequence[str] | None = None

    def __init__(
        self, level: Literal['parameter', 'representation'] = 'parameter', weight_heads: bool | None = None
    ) -> None:
        super().__init__()
        if level not in self.levels:
            raise ValueError(f'{type(self).__name__}: level must be one of {self.levels}, got {level!r}')
        self.level = level
        self.weight_heads = self.weights_heads_by_default if weight_heads is None else weight_heads
        if self.weight_heads and not self.has_weights:
            raise ValueError(
                f'{type(self).__name__}: weight_heads=True needs one weight per task, and this method has none'
            )

    def setup(self, num_tasks: int, sizes: Sequence[int] | None = None) -> None:
        """Tells the number of tasks, before the first call, and then the layout of P. Idempotent.

        Args:
            num_tasks: T.
            sizes: Number of elements of each shared parameter tensor, in the order of the columns of ``gradients_TP``,
                for methods that treat layers separately; None: not known, all columns are one layer.
        """

    def learned(self) -> list[nn.Parameter]:
        """The parameters that the run's own optimizer trains."""
        return list(self.parameters())

    def forward(self, gradients_TP: Tensor, losses_T: Tensor) -> tuple[Tensor, Tensor | None]:
        """Combines the gradients.

        Args:
            gradients_TP: One row per task, (T, P).
            losses_T: The global (mean over ranks) values of the losses that the rows are gradients of, (T,).

        Returns:
            The combined gradient (P,), and the weight of each task (T,) where the result is a weighted sum, else None.
        """
        raise NotImplementedError

    def head_weights(self, weights_T: Tensor | None, losses_T: Tensor) -> Tensor | None:
        """The factor (T,) of the gradient of each task's own head, given the result of the same step; None: all 1.

        Args:
            weights_T: The weights that :meth:`forward` returned; None also where the encoder is frozen, so that nothing
                was combined.
            losses_T: As in :meth:`forward`.
        """
        return weights_T if self.weight_heads else None

    def at_representation(
        self, gradients_TB: Tensor, representation_B: Tensor, sum_over_ranks: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Combines the gradients at one level of Z, for methods at representation level that are not Gramian.

        Args:
            gradients_TB: This rank's part, (T, B, ...).
            representation_B: Z of this rank, (B, ...).
            sum_over_ranks: Sums a tensor of the same shape on every rank.

        Returns:
            The combined gradient, (B, ...).
        """
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # The state tells the shapes of the buffers that setup would make.
        for name, buffer in self._buffers.items():
            saved = state_dict.get(prefix + name)
            if buffer is None and saved is not None:
                setattr(self, name, torch.empty_like(saved))
        super()._load_from_state_dict(state_dict, prefix, *args)


class GramianAggregator(Aggregator):
    """Base of aggregators whose result is ``sum_t w_t g_t`` with weights computed from the Gramian ``g g^T``.

    A subclass defines :meth:`solve`, for the tasks that have a gradient. One whose state or weights concern absent
    tasks too defines :meth:`weights` instead.
    """

    #: Whether :meth:`solve` is also asked for the only task that is left of several, where its weight has a unit.
    solves_last: bool = False

    def solve(self, gramian_SS: Tensor, losses_S: Tensor) -> Tensor:
        """The weights of the tasks that have a gradient, as if there were no others.

        Args:
            gramian_SS: Inner products of their gradients, (S, S), with a positive diagonal; float64, on the CPU.
            losses_S: Their losses, (S,).

        Returns:
            The weights (S,).
        """
        raise NotImplementedError

    def weights(self, gramian_TT: Tensor, losses_T: Tensor) -> Tensor:
        """The weights of all tasks: those of :meth:`solve`, 0 without a gradient, 1 for the only one that has one.

        Args:
            gramian_TT: Inner products of the gradients, (T, T); float64, on the CPU, where the small problem is solved.
            losses_T: The losses, (T,).

        Returns:
            The weights (T,).

        Raises:
            ValueError: If the Gramian is not finite.
        """
        return on_present_tasks(self.solve, gramian_TT, losses_T, self.solves_last)

    def forward(self, gradients_TP: Tensor, losses_T: Tensor) -> tuple[Tensor, Tensor]:
        weights_T = self.weights(gramian(gradients_TP).cpu(), losses_T.cpu()).to(gradients_TP)
        return weights_T @ gradients_TP, weights_T


def gramian(gradients_TP: Tensor) -> Tensor:
    """The inner products (T, T) in float64, in pieces: a float64 copy of all gradients would double their memory."""
    num_tasks = len(gradients_TP)
    total_TT = gradients_TP.new_zeros(num_tasks, num_tasks, dtype=torch.float64)
    for piece in gradients_TP.split(COLUMNS, dim=1):
        piece_TC = piece.double()
        total_TT += piece_TC @ piece_TC.T
    return total_TT
