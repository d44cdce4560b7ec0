"""IMTL-G. Dimensions: S the subset of the tasks that has a gradient."""

from typing import Literal

import torch
from torch import Tensor

from mmrepmtl.methods.facts import Facts

from .base import GramianAggregator
from .solvers import ROUNDING, cosines_and_norms, pseudo_solve


class IMTLG(GramianAggregator):
    """IMTL-G: the combination whose projections onto all task gradients are equal.

    ``<d, g_t / |g_t|>`` is the same for every t, for ``d = sum_t w_t g_t`` with ``sum_t w_t = 1``. Source: Liu et al.,
    "Towards Impartial Multi-task Learning", ICLR 2021, Eq. 4-7, whose closed form is ``w_t = z_t / |g_t|`` over its
    sum, with ``C z = 1`` and C the cosines. Two tasks always get weights in inverse proportion to their norms.

    Scale: the weights sum to 1 (paper). Heads are unweighted (paper, Algorithm 1; the code of Nash-MTL's experiments
    weighs the losses). Weights may be negative. From three tasks on, with very unequal norms, the sum may be too, and
    the closed form then points uphill for every task: its sign is dropped. Linearly dependent gradients: the limit of
    independent ones where all projections can be equal (parallel gradients: weights as for two tasks), and zero
    with zero weights where that is only true of the zero vector (opposed gradients, more tasks than dimensions).
    ``torchjd`` uses the pseudo-inverse of the Gramian, which for parallel gradients is not that limit.

    Tasks without a gradient are left out. Combined once per accumulation window at parameter level, per micro-batch
    at representation level, the default: the paper takes gradients at Z. LibMTL's default, and the code of Nash-MTL's
    experiments, have them at the parameters.

    Args:
        level: The place of the gradients, as in :class:`Aggregator`.
        weight_heads: As in :class:`Aggregator`.
    """

    facts = Facts(
        paper='Liu et al., Towards Impartial Multi-Task Learning, ICLR 2021, Eq. 4-7',
        rule=r'$w_t \propto z_t / \lVert g_t \rVert$, $C z = 1$: equal projections onto all unit gradients',
        convention=(
            'weights sum to 1; where their sum is negative the closed form points uphill and its sign is dropped; at '
            "Z, as the paper (LibMTL's default and Nash-MTL's code: at the parameters)"
        ),
        unlabelled='no part of the problem',
        step='1/T of that of `ew`',
        heads="as Algorithm 1; Nash-MTL's code weighs the losses",
    )

    def __init__(
        self, level: Literal['parameter', 'representation'] = 'representation', weight_heads: bool | None = None
    ) -> None:
        super().__init__(level, weight_heads)

    def solve(self, gramian_SS: Tensor, losses_S: Tensor) -> Tensor:
        """Returns the weights (S,), of sum 1 or all 0."""
        cosines_SS, norms_S = cosines_and_norms(gramian_SS)
        ones_S = torch.ones_like(norms_S)
        z_S = pseudo_solve(cosines_SS, ones_S)
        weights_S = z_S * (norms_S.min() / norms_S)
        solvable = (cosines_SS @ z_S - ones_S).abs().max() < ROUNDING**0.5
        if not solvable or weights_S.sum().abs() <= ROUNDING * weights_S.abs().sum():
            return torch.zeros_like(weights_S)
        return weights_S / weights_S.sum().abs()
