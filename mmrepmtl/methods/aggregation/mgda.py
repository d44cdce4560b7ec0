"""MGDA. Dimensions: T tasks, S the subset of them that has a gradient."""

from typing import Literal

from torch import Tensor

from mmrepmtl.methods.facts import Facts
from mmrepmtl.methods.positive import check_positive

from .base import GramianAggregator
from .solvers import min_norm_weights, present_tasks


class MGDA(GramianAggregator):
    """The gradient of least norm in the convex hull of the task gradients: no task gets worse (to first order).

    Minimises ``|sum_t w_t g_t|^2`` over ``w_t >= 0, sum_t w_t = 1``. Source: Desideri, 2012; Sener and Koltun,
    "Multi-Task Learning as Multi-Objective Optimization", NeurIPS 2018, Eq. 3 and, at representation level, MGDA-UB.
    Solved exactly, not by Frank-Wolfe.

    Scale: the weights sum to 1, as in the paper (Nash-MTL's experiments multiply by T), so that the step is at most
    that of the shortest gradient. Heads are unweighted (paper, Algorithm 2; its code weighs the losses). With
    ``normalization`` the weights are those of the gradients divided by a number of each task, and are applied to the
    gradients as they are, as in the paper's code (LibMTL combines the divided ones).

    The result is zero where a convex combination is zero: the point is Pareto-stationary. Then, and with equal
    gradients, the weights are not unique and the combination is. Tasks without a gradient are left out. Combined once
    per accumulation window at parameter level, per micro-batch at representation level.

    Args:
        level: The place of the gradients, as in :class:`Aggregator`.
        weight_heads: As in :class:`Aggregator`.
        normalization: Divisor of the gradients: ``'none'`` (paper), their norm (``'l2'``), the loss
            (``'loss'``) or both (``'loss+'``).

    Raises:
        ValueError: For an unknown normalization, or a loss that is not positive where it is divided by.
    """

    facts = Facts(
        paper='Désidéri 2012; Sener and Koltun, NeurIPS 2018, Eq. 3, and MGDA-UB at Z',
        rule=r'$\min_w \lVert \sum_t w_t g_t \rVert$ over the simplex',
        convention=(
            "exact, not Frank-Wolfe; weights sum to 1 (paper; Nash-MTL's code multiplies by T); with `normalization` "
            "weights of the divided gradients are applied to the gradients (paper's code; LibMTL combines the divided "
            'ones)'
        ),
        unlabelled='no part of the problem',
        step='1/T of that of `ew`',
        heads='as Algorithm 2; its code weighs the losses',
    )

    def __init__(
        self,
        level: Literal['parameter', 'representation'] = 'parameter',
        weight_heads: bool | None = None,
        normalization: Literal['none', 'l2', 'loss', 'loss+'] = 'none',
    ) -> None:
        super().__init__(level, weight_heads)
        if normalization not in ('none', 'l2', 'loss', 'loss+'):
            raise ValueError(f"MGDA: normalization must be 'none', 'l2', 'loss' or 'loss+', got {normalization!r}")
        self.normalization = normalization
        if normalization in ('loss', 'loss+'):
            self.loss_transform = 'own'

    def weights(self, gramian_TT: Tensor, losses_T: Tensor) -> Tensor:
        """Returns the weights (T,), at least 0 and of sum 1, of losses that may be divided by."""
        if self.normalization in ('loss', 'loss+'):
            why = f'normalization={self.normalization!r} divides by the losses, which must be positive; it needs'
            check_positive(self, losses_T, present_tasks(gramian_TT), why)
        return super().weights(gramian_TT, losses_T)

    def solve(self, gramian_SS: Tensor, losses_S: Tensor) -> Tensor:
        """Returns the weights (S,), at least 0 and of sum 1."""
        divisors_S = gramian_SS.new_ones(len(gramian_SS))
        if self.normalization in ('l2', 'loss+'):
            divisors_S = divisors_S * gramian_SS.diagonal().sqrt()
        if self.normalization in ('loss', 'loss+'):
            divisors_S = divisors_S * losses_S.to(divisors_S)
        return min_norm_weights(gramian_SS / divisors_S / divisors_S[:, None])[0]
