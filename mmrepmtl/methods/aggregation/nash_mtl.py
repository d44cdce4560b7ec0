"""Nash-MTL. Dimensions: T tasks, S the subset of them that has a gradient."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mmrepmtl.methods.facts import Facts

from .base import GramianAggregator
from .solvers import clip_to_norm, cosines_and_norms, fair_coefficients, present_tasks


class NashMTL(GramianAggregator):
    """Nash-MTL: the Nash bargaining solution of the tasks over the step.

    Weights ``a > 0`` with ``G a = 1 / a``, G the Gramian. Source: Navon et al., "Multi-Task Learning as a Bargaining
    Game", ICML 2022, Claim 3.1 and Algorithm 1; the clipping is that of the paper's code. The minimum of
    ``a^T G a / 2 - sum_t log a_t`` is found by Newton's method on gradients of unit norm. Public code divides G by its
    Frobenius norm, which its constraint multiplies back, so that it solves the same problem; it linearises a concave
    term, leaves tolerances absolute and goes on with old weights if its solver is missing or fails.

    Scale: the result has norm ``sqrt(T)`` whatever the scale of the losses; ``max_norm`` then clips it, by default to
    1. The weights are in inverse proportion to the gradients. The code of the paper multiplies the losses by them, so
    heads are weighted by default, without the clipping, which is of the shared parameters. With T = 1 it is plain
    training: weight 1, no clipping.

    There is no solution where zero is a convex combination of the gradients (the point is Pareto-stationary, which the
    paper excludes): the result is zero, and heads keep the last weights (``1 / |g|`` of a task that has none so far). A
    task without a gradient is left out of the bargain and keeps its last weight; it counts again in the next bargain
    that it has a gradient in. A task that was in no bargain so far is not waited for: its first step is one. The only
    task with a gradient has ``a = 1 / |g|``, as the equation says. Combined once per accumulation window at parameter
    level (so that ``update_weights_every`` counts optimizer steps), per micro-batch at representation level.

    Args:
        level: The place of the gradients, as in :class:`Aggregator`.
        weight_heads: As in :class:`Aggregator`.
        update_weights_every: Steps for which the weights of one bargain are used, counted from the first step.
        max_norm: Largest norm of the result (1 in the paper's code), or None. The weights that are returned include
            the clipping.

    Raises:
        ValueError: If ``update_weights_every`` or ``max_norm`` is not positive.
    """

    facts = Facts(
        paper='Navon et al., ICML 2022, Claim 3.1, Algorithm 1',
        rule='$G w = 1 / w$',
        convention=(
            'the equation has no scale: a result of norm sqrt(T) for losses of any unit, clipped to norm 1 '
            "(`max_norm`) as in the paper's code; Newton's method to the end, not a linearised problem whose failure "
            'goes unnoticed; no solution: result 0'
        ),
        unlabelled=(
            'out of the bargain, keeps its last weight for its return; a bargain is made at once for one that was in '
            'none; the only one left has weight 1 / ‖g‖ and is clipped'
        ),
        step='norm 1',
        state='last bargain (T), count of steps',
        heads="without the clipping, as in the paper's code",
    )

    weights_heads_by_default = True
    step: Tensor
    bargain_T: Tensor | None

    def __init__(
        self,
        level: Literal['parameter', 'representation'] = 'parameter',
        weight_heads: bool | None = None,
        update_weights_every: int = 1,
        max_norm: float | None = 1.0,
    ) -> None:
        super().__init__(level, weight_heads)
        if update_weights_every < 1:
            raise ValueError(f'NashMTL: update_weights_every must be at least 1, got {update_weights_every}')
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f'NashMTL: max_norm must be positive or None, got {max_norm}')
        self.update_weights_every, self.max_norm = update_weights_every, max_norm
        self.register_buffer('step', torch.zeros((), dtype=torch.long))
        self.register_buffer('bargain_T', None)
        self._unclipped_T: Tensor | None = None

    def setup(self, num_tasks: int, sizes: Sequence[int] | None = None) -> None:
        """Makes the weights of the last bargain, 0 for a task that was in none so far."""
        if self.bargain_T is None:
            self.bargain_T = torch.zeros(num_tasks, dtype=torch.float64)

    def weights(self, gramian_TT: Tensor, losses_T: Tensor) -> Tensor:
        """Returns the weights (T,) after clipping, not negative."""
        self.setup(len(gramian_TT))
        present_T = present_tasks(gramian_TT)
        if len(present_T) == 1:
            self._unclipped_T = present_T.to(gramian_TT)
            return self._unclipped_T.clone()
        assert self.bargain_T is not None
        used_T = self.bargain_T.cpu().clone()
        new_T = present_T & (used_T == 0)
        due = int(self.step) % self.update_weights_every == 0 or bool(new_T.any())
        self.step += int(present_T.any())
        stationary = False
        if present_T.any() and due:
            solved_S = _bargain(gramian_TT[present_T][:, present_T])
            if solved_S is None:
                stationary = True
                used_T[new_T] = 1 / gramian_TT.diagonal()[new_T].sqrt()
            else:
                used_T[present_T] = solved_S
                self.bargain_T.copy_(used_T)
        self._unclipped_T = torch.where(present_T, used_T, 0)
        if stationary:
            return torch.zeros_like(used_T)
        return clip_to_norm(self._unclipped_T, gramian_TT, self.max_norm)

    def head_weights(self, weights_T: Tensor | None, losses_T: Tensor) -> Tensor | None:
        """The weights before clipping."""
        if not self.weight_heads or weights_T is None:
            return None
        assert self._unclipped_T is not None  # weights_T came with it
        return self._unclipped_T.to(weights_T)


def _bargain(gramian_SS: Tensor) -> Tensor | None:
    """Solves ``G a = 1 / a``; None where there is no solution."""
    cosines_SS, norms_S = cosines_and_norms(gramian_SS)
    b_S = fair_coefficients(cosines_SS, torch.ones_like(norms_S), alpha=1.0)
    return None if b_S is None else b_S / norms_S  # C b = 1 / b for the unit gradients
