from torch import Tensor

from .base import GramianAggregator
from .solvers import cosines_and_norms, on_present_tasks, project_on_dual_cone


class DualProj(GramianAggregator):
    """DualProj: the mean gradient, projected onto the vectors that conflict with no gradient.

    The nearest vector d to ``mean_t g_t`` with ``<d, g_t> >= 0`` for all tasks; ``d = sum_t v_t g_t`` with
    ``v = argmin v^T G v`` subject to ``v >= 1 / T``. Source: Lopez-Paz and Ranzato, "Gradient Episodic Memory for
    Continual Learning", NeurIPS 2017, Eq. 11, as named and applied to the mean by Quinton and Rey, arXiv 2406.16232.
    Solved exactly; ``torchjd`` regularises, as for :class:`UPGrad`.

    Scale: of the *mean* (``torchjd``), so that without conflicts the step is 1 / T of equal weighting. Heads are
    unweighted.

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
        relative_P = norms_P / norms_P.max()
        return project_on_dual_cone(cosines_PP, relative_P / len(norms_P)) / relative_P
