import torch
from torch import Tensor

from .base import GramianAggregator
from .solvers import ROUNDING, cosines_and_norms, on_present_tasks, pseudo_solve


class ConFIG(GramianAggregator):
    """ConFIG: the direction of equal cosine to all task gradients, as long as the sum of their projections onto it.

    With the unit gradients as rows of U the direction is that of ``U^+ 1``, here ``sum_t z_t g_t / |g_t|`` with
    ``z = C^+ 1`` and C the cosines; the length is ``sum_t <g_t, direction>``. Source: Liu, Chu and Thuerey, "ConFIG:
    Towards Conflict-free Training of Physics Informed Neural Networks", ICLR 2025, Eq. 2 (without momentum).

    Scale: orthogonal gradients of equal norm give their sum. Heads are unweighted. Linearly dependent gradients: the
    least-squares direction, as with the paper's pseudo-inverse; zero where there is none (opposed gradients). Weights
    may be negative.

    Tasks without a gradient are left out. Combined once per accumulation window at parameter level, per micro-batch
    at representation level.

    Args:
        level: Where the gradients are taken.
        weight_heads: As in :class:`Aggregator`.
    """

    def weights(self, gramian_TT: Tensor, losses_T: Tensor) -> Tensor:
        """Returns the weights (T,)."""
        del losses_T
        return on_present_tasks(self._solve, gramian_TT)

    def _solve(self, gramian_PP: Tensor, losses_P: Tensor | None) -> Tensor:
        del losses_P
        cosines_PP, norms_P = cosines_and_norms(gramian_PP)
        z_P = pseudo_solve(cosines_PP, torch.ones_like(norms_P))
        if z_P.abs().max() < ROUNDING**0.5:
            return torch.zeros_like(z_P)
        products_P = cosines_PP @ z_P  # of the unit gradients with a direction of squared length z^T C z
        return z_P * (products_P @ norms_P) / (z_P @ products_P) / norms_P
