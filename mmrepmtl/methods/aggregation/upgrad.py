"""UPGrad. Dimensions: S the subset of the tasks that has a gradient."""

import torch
from torch import Tensor

from mmrepmtl.methods.facts import Facts

from .base import GramianAggregator
from .solvers import cosines_and_norms, project_on_dual_cone


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
        level: The place of the gradients, as in :class:`Aggregator`.
        weight_heads: As in :class:`Aggregator`.
    """

    facts = Facts(
        paper='Quinton and Rey, arXiv 2406.16232, Eq. 3, Proposition 1',
        rule='each $g_t$ projected onto the vectors that conflict with no gradient; the mean',
        convention=(
            "the mean (paper, torchjd), so 1/T of the step of `ew` without conflicts; exact, without torchjd's "
            'regularisation'
        ),
        unlabelled='no part of the problem or of the mean',
        step='1/T of that of `ew`',
    )

    def solve(self, gramian_SS: Tensor, losses_S: Tensor) -> Tensor:
        """Returns the weights (S,), at least 1 / S each."""
        cosines_SS, norms_S = cosines_and_norms(gramian_SS)
        units_SS = torch.eye(len(norms_S), dtype=norms_S.dtype)
        projected_SS = torch.stack([project_on_dual_cone(cosines_SS, unit_S) for unit_S in units_SS])
        return (projected_SS * norms_S[:, None] / norms_S).mean(0)
