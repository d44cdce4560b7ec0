import torch
from torch import Tensor

from .base import GramianAggregator
from .solvers import cosines_and_norms, on_present_tasks, project_on_dual_cone


class UPGrad(GramianAggregator):
    """UPGrad: each gradient is projected onto the vectors that conflict with no gradient; the projections' mean.

    The projection of g_t is the nearest vector d with ``<d, g_s> >= 0`` for all tasks s. It is ``sum_s v_s g_s`` with
    ``v = argmin v^T G v`` subject to ``v >= e_t``. Source: Quinton and Rey, "Jacobian Descent for Multi-Objective
    Optimization", arXiv 2406.16232, Eq. 3 and Proposition 1. Solved exactly; ``torchjd`` adds 1e-4 to the diagonal of
    the normalised Gramian, which moves the result by percents.

    Scale: the *mean* over tasks (paper and ``torchjd``), so that without conflicts the step is 1 / T of equal
    weighting. Heads are unweighted.

    Tasks without a gradient are left out, also of the mean. Combined once per accumulation window at parameter level,
    per micro-batch at representation level.

    Args:
        level: Where the gradients are taken.
        weight_heads: As in :class:`Aggregator`.
    """

    def weights(self, gramian_TT: Tensor, losses_T: Tensor) -> Tensor:
        """Returns the weights (T,), at least 1 / T each."""
        del losses_T
        return on_present_tasks(self._solve, gramian_TT)

    def _solve(self, gramian_PP: Tensor, losses_P: Tensor | None) -> Tensor:
        del losses_P
        cosines_PP, norms_P = cosines_and_norms(gramian_PP)
        units_PP = torch.eye(len(norms_P), dtype=norms_P.dtype)
        projected_PP = torch.stack([project_on_dual_cone(cosines_PP, unit_P) for unit_P in units_PP])
        return (projected_PP * norms_P[:, None] / norms_P).mean(0)
