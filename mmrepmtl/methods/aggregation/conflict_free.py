"""ConFIG, the conflict-free direction. Dimensions: S the subset of the tasks that has a gradient."""

import torch
from torch import Tensor

from mmrepmtl.methods.facts import Facts

from .base import GramianAggregator
from .solvers import ROUNDING, cosines_and_norms, pseudo_solve


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
        level: The place of the gradients, as in :class:`Aggregator`.
        weight_heads: As in :class:`Aggregator`.
    """

    facts = Facts(
        paper='Liu et al., ICLR 2025, Eq. 2',
        rule=(
            r'$d \propto \sum_t z_t g_t / \lVert g_t \rVert$, $C z = 1$: the direction of equal cosine to all '
            'gradients, as long as the sum of their projections onto it'
        ),
        convention='without momentum; least squares where gradients are dependent, 0 where there is no direction',
        unlabelled='no part of the problem',
        step='that of `ew`',
    )

    def solve(self, gramian_SS: Tensor, losses_S: Tensor) -> Tensor:
        """Returns the weights (S,)."""
        cosines_SS, norms_S = cosines_and_norms(gramian_SS)
        z_S = pseudo_solve(cosines_SS, torch.ones_like(norms_S))
        if z_S.abs().max() < ROUNDING**0.5:
            return torch.zeros_like(z_S)
        products_S = cosines_SS @ z_S  # those of the unit gradients with a direction of squared length z^T C z
        return z_S * (products_S @ norms_S) / (z_S @ products_S) / norms_S
