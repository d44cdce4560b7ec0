from typing import Literal

from torch import Tensor, nn


class Aggregator(nn.Module):
    """Base of gradient aggregators: T task gradients become the one gradient of the shared parameters.

    Called outside any trainer as ``aggregator(gradients_TP, losses_T)``. An aggregator that only needs the inner
    products of the gradients derives from :class:`GramianAggregator`; at representation level
    the engine then reduces a T x T matrix only. Its random state, if any, is equal on all
    ranks. Everything that a resumed run needs is in ``state_dict()``.

    Args:
        level: Where the gradients are taken: ``'parameter'`` (of the shared parameters) or ``'representation'`` (at Z,
            the encoder is then traversed once).
    """

    #: Levels that the method's definition allows.
    levels: tuple[str, ...] = ('parameter', 'representation')

    def __init__(self, level: Literal['parameter', 'representation'] = 'parameter') -> None:
        super().__init__()
        if level not in self.levels:
            raise ValueError(f'{type(self).__name__}: level must be one of {self.levels}, got {level!r}')
        self.level = level

    def setup(self, num_tasks: int) -> None:
        """Tells the number of tasks, before the first call. Idempotent."""
        del num_tasks

    def forward(self, gradients_TP: Tensor, losses_T: Tensor) -> tuple[Tensor, Tensor | None]:
        """Combines the gradients.

        Args:
            gradients_TP: One row per task, (T, P).
            losses_T: The global (mean over ranks) loss values, (T,).

        Returns:
            The combined gradient (P,), and the weight of each task (T,) where the result is a weighted sum, else None.
        """
        raise NotImplementedError


class GramianAggregator(Aggregator):
    """Base of aggregators whose result is ``sum_t w_t g_t`` with weights computed from the Gramian ``g g^T``."""

    def weights(self, gramian_TT: Tensor, losses_T: Tensor) -> Tensor:
        """Returns the weights (T,) for the Gramian (T, T), float64 on the CPU or the device of the gradients."""
        raise NotImplementedError

    def forward(self, gradients_TP: Tensor, losses_T: Tensor) -> tuple[Tensor, Tensor]:
        weights_T = self.weights(gramian(gradients_TP), losses_T).to(gradients_TP)
        return weights_T @ gradients_TP, weights_T


def gramian(gradients_TP: Tensor) -> Tensor:
    """The inner products (T, T) in float64, in pieces: a float64 copy of all gradients would double their memory."""
    return sum(piece.double() @ piece.double().T for piece in gradients_TP.split(2**18, dim=1))
