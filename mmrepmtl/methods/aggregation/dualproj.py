"""DualProj. Dimensions: S the subset of the tasks that has a gradient."""

from torch import Tensor

from mmrepmtl.methods.facts import Facts

from .base import GramianAggregator
from .solvers import cosines_and_norms, project_on_dual_cone


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
        level: The place of the gradients, as in :class:`Aggregator`.
        weight_heads: As in :class:`Aggregator`.
    """

    facts = Facts(
        paper='Lopez-Paz and Ranzato (GEM), NeurIPS 2017, Eq. 11; as in arXiv 2406.16232',
        rule='the mean of the $g_t$ projected onto the vectors that conflict with no gradient',
        convention=(
            "the mean (torchjd), so 1/T of the step of `ew` without conflicts; exact, without torchjd's regularisation"
        ),
        unlabelled='no part of the problem or of the mean',
        step='1/T of that of `ew`',
    )

    def solve(self, gramian_SS: Tensor, losses_S: Tensor) -> Tensor:
        """Returns the weights (S,), at least 1 / S each."""
        cosines_SS, norms_S = cosines_and_norms(gramian_SS)
        relative_S = norms_S / norms_S.max()
        return project_on_dual_cone(cosines_SS, relative_S / len(norms_S)) / relative_S
