"""FairGrad. Dimensions: S the subset of the tasks that has a gradient."""

from typing import Literal

import torch
from torch import Tensor

from mmrepmtl.methods.facts import Facts

from .base import GramianAggregator
from .solvers import clip_to_norm, cosines_and_norms, fair_coefficients


class FairGrad(GramianAggregator):
    """FairGrad: the alpha-fair share of the improvement among the tasks.

    Weights ``w > 0`` with ``G w = w^(-1 / alpha)``, G the Gramian; alpha = 1 is proportional fairness (Nash-MTL on the
    Gramian as it is), large alpha approaches max-min fairness. Source: Ban and Ji, "Fair Resource Allocation in
    Multi-Task Learning", ICML 2024, Eq. 4. Solved by Newton's method on gradients of unit norm.

    Scale: as the paper's equation fixes it. Multiplying all losses by s multiplies the result by
    ``s^((1 - alpha) / (1 + alpha))``, so for alpha > 1 the smaller the gradients the longer the step; ``max_norm`` then
    bounds it, as in the paper's code (which also multiplies by T; the paper and LibMTL do not, and neither do we).
    Heads are unweighted (paper's code; LibMTL weighs the losses). With T = 1 it is plain training: weight 1, no
    clipping.

    There is no solution where zero is a convex combination of the gradients (the point is Pareto-stationary): the
    result and the weights are zero. Tasks without a gradient are left out; the only one left has the weight of the
    equation, ``|g|^(-2 alpha / (1 + alpha))``, and is clipped, so that its step has no other unit than that of several.
    Combined once per accumulation window at parameter level, per micro-batch at representation level.

    Args:
        level: The place of the gradients, as in :class:`Aggregator`.
        weight_heads: As in :class:`Aggregator`.
        alpha: In [0.5, 20]; 2 is the paper's code for QM9 (its class has 1, which is Nash-MTL).
        max_norm: Largest norm of the result (1 in the paper's code), or None. The weights that are returned include
            the clipping.

    Raises:
        ValueError: If alpha is out of range or max_norm is not positive.
    """

    facts = Facts(
        paper='Ban and Ji, ICML 2024, Eq. 4',
        rule=r'$G w = w^{-1/\alpha}$',
        convention=(
            "alpha 2 and clipping to norm 1 (`max_norm`), as the paper's code; not times T (that code does; the paper "
            'and LibMTL do not); no solution: result 0'
        ),
        unlabelled='no part of the problem; the only one left has the weight of the equation and is clipped',
        step='norm 1 at most',
        heads="as the paper's code; LibMTL weighs the losses",
    )

    solves_last = True

    def __init__(
        self,
        level: Literal['parameter', 'representation'] = 'parameter',
        weight_heads: bool | None = None,
        alpha: float = 2.0,
        max_norm: float | None = 1.0,
    ) -> None:
        super().__init__(level, weight_heads)
        if not 0.5 <= alpha <= 20:
            raise ValueError(
                f'FairGrad: alpha must be in [0.5, 20], got {alpha}; below it is almost equal weighting, above MGDA'
            )
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f'FairGrad: max_norm must be positive or None, got {max_norm}')
        self.alpha, self.max_norm = alpha, max_norm

    def solve(self, gramian_SS: Tensor, losses_S: Tensor) -> Tensor:
        """Returns the weights (S,), positive or all 0."""
        cosines_SS, norms_S = cosines_and_norms(gramian_SS)
        scale = norms_S.max()
        relative_S = norms_S / scale
        # With b_t = |g_t| w_t the equation reads C b = |g|^(1 / alpha - 1) b^(-1 / alpha).
        b_S = fair_coefficients(cosines_SS, relative_S ** (1 / self.alpha - 1), self.alpha)
        if b_S is None:
            return torch.zeros_like(norms_S)
        weights_S = b_S / relative_S * scale ** (-2 * self.alpha / (1 + self.alpha))
        return clip_to_norm(weights_S, gramian_SS, self.max_norm)
