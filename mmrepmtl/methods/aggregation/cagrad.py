"""CAGrad. Dimensions: S the subset of the tasks that has a gradient."""

from typing import Literal

import torch
from torch import Tensor

from mmrepmtl.methods.facts import Facts

from .base import GramianAggregator
from .solvers import ROUNDING, cosines_and_norms, nonnegative_qp


class CAGrad(GramianAggregator):
    """CAGrad: near the mean gradient, the direction that most improves the task that it improves least.

    ``d = argmax_d min_t <g_t, d>`` subject to ``|d - g_0| <= c |g_0|``, g_0 the mean gradient. Source: Liu et al.,
    "Conflict-Averse Gradient Descent for Multi-task Learning", NeurIPS 2021, Eq. 4. Its dual, ``min_w g_w^T g_0 + c
    |g_0| |g_w|`` over the simplex, is what public code hands to a general solver with absolute tolerances. Here: for a
    value v of the inner maximum, the nearest d to g_0 with ``<g_t, d> >= v`` is a quadratic program; v is the root of
    its distance, in closed form once the tasks that bind are known. The result is ``g_0 + sum_t u_t g_t, u >= 0``.

    Scale: d is multiplied by T "to match the sum loss" and, with ``rescale``, divided by ``1 + c^2``, as in the code of
    the paper's experiments (``torchjd`` and Algorithm 1 of the paper do neither, LibMTL only the latter). Parallel
    gradients therefore give ``(1 + c) / (1 + c^2)`` times their sum. Heads are unweighted.

    Several d may reach the maximum where zero is a convex combination of the gradients (the point is
    Pareto-stationary); the nearest one to g_0 is taken. Tasks without a gradient are left out, also of T and of the
    mean; a task that is the only one has weight 1. Combined once per accumulation window at parameter level, per
    micro-batch at representation level.

    Args:
        level: The place of the gradients, as in :class:`Aggregator`.
        weight_heads: As in :class:`Aggregator`.
        c: Radius relative to the mean gradient; 0 is equal weighting, the paper has [0, 1) and 0.4 on NYUv2.
        rescale: Whether to divide by ``1 + c^2``.

    Raises:
        ValueError: For a negative c.
    """

    facts = Facts(
        paper='Liu et al., NeurIPS 2021, Eq. 4',
        rule=(
            r'$\max_d \min_t \langle g_t, d \rangle$ with $\lVert d - g_0 \rVert \leq c \lVert g_0 \rVert$, '
            '$g_0$ the mean'
        ),
        convention=(
            "times T and over 1 + c², as the code of the paper's experiments (Algorithm 1 and torchjd: neither; "
            'LibMTL: the latter); `rescale=False` leaves the division out'
        ),
        unlabelled='no part of the problem, of T or of the mean',
        step='(1 + c) / (1 + c²) of that of `ew`: 1.2 times with c = 0.4',
    )

    def __init__(
        self,
        level: Literal['parameter', 'representation'] = 'parameter',
        weight_heads: bool | None = None,
        c: float = 0.4,
        rescale: bool = True,
    ) -> None:
        super().__init__(level, weight_heads)
        if not c >= 0:
            raise ValueError(f'CAGrad: c must be at least 0, got {c}')
        self.c, self.rescale = c, rescale

    def solve(self, gramian_SS: Tensor, losses_S: Tensor) -> Tensor:
        """Returns the weights (S,), at least ``1 / (1 + c^2)`` each."""
        cosines_SS, norms_S = cosines_and_norms(gramian_SS)
        norms_S = norms_S / norms_S.max()
        mean_S = norms_S / len(norms_S)  # g_0 in unit gradients
        added_S = _worst_case_shift(cosines_SS, norms_S, mean_S, self.c)
        weights_S = 1 + len(norms_S) * added_S / norms_S
        return weights_S / (1 + self.c**2) if self.rescale else weights_S


def _worst_case_shift(cosines_SS: Tensor, norms_S: Tensor, mean_S: Tensor, c: float) -> Tensor:
    """The coefficients (S,) of the unit gradients in d - g_0; lengths in units of the largest gradient."""
    products_S = cosines_SS @ mean_S  # inner products of the unit gradients with g_0
    square = float(mean_S @ products_S)
    if c == 0 or square <= ROUNDING**2:
        return torch.zeros_like(mean_S)
    radius = c * square**0.5
    # Between the worst task's <g_t, d> at g_0 itself and what a step towards one task alone could give that task.
    low = float((norms_S * products_S).min())
    high = float((norms_S * (products_S + radius)).min())
    smallest = 1e-16 * max(abs(low), abs(high))
    value, settled, inside_S = high, None, torch.zeros_like(mean_S)
    while high - low > smallest:
        shift_S = nonnegative_qp(cosines_SS, value / norms_S - products_S)
        if shift_S is None:  # not all tasks can gain as much
            high, settled = value, None
        else:
            support_S = shift_S > 0
            excess = float(shift_S @ cosines_SS @ shift_S) - radius**2
            same = settled is not None and torch.equal(support_S, settled)
            if same or abs(excess) <= ROUNDING * radius**2:
                return shift_S
            low, high = (low, value) if excess > 0 else (value, high)
            inside_S = inside_S if excess > 0 else shift_S
            settled = support_S
            value = _value_at_radius(cosines_SS, norms_S, products_S, support_S, radius)
        if settled is None or not low < value < high:
            value, settled = (low + high) / 2, None
        if not low < value < high:  # neighbours
            break
    return inside_S  # the ball is larger than what all tasks can gain: the nearest of the best


def _value_at_radius(
    cosines_SS: Tensor, norms_S: Tensor, products_S: Tensor, support_S: Tensor, radius: float
) -> float:
    """The value v at which the nearest d with <g_t, d> = v, for the tasks of a support, is at a distance from g_0."""
    if not support_S.any():
        return -torch.inf
    right_S2 = torch.stack([1 / norms_S[support_S], products_S[support_S]], 1)
    gram_22 = right_S2.T @ torch.linalg.solve(cosines_SS[support_S][:, support_S], right_S2)
    a, b, d = float(gram_22[0, 0]), float(gram_22[0, 1]), float(gram_22[1, 1]) - radius**2
    root: float = max(b * b - a * d, 0.0) ** 0.5
    return (b + root) / a
