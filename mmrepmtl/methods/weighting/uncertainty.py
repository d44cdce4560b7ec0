"""Uncertainty weighting. Dimensions: T tasks."""

import torch
from torch import Tensor

from mmrepmtl.methods.facts import Facts

from .learned import LearnedWeighting


class UncertaintyWeighting(LearnedWeighting):
    """Homoscedastic-uncertainty weighting (UW): each loss divided by a learned variance.

    Source: Kendall, Gal and Cipolla, CVPR 2018, Eq. 5-10, with ``s = log sigma^2`` and the regression form
    ``1/(2 sigma^2)`` for every task, as LibMTL and the Rep-MTL paper's baselines use it: the scalar is
    ``sum_t L_t / (2 exp(s_t)) + s_t / 2``. An unlabelled task is left out, its ``s_t`` included (its gradient is 0).
    Losses may be 0 or negative; the variance of a task whose loss stays so falls without end.

    Args:
        num_tasks: T; None where :meth:`setup` tells it later.
    """

    facts = Facts(
        paper='Kendall et al., CVPR 2018, Eq. 5-10',
        rule=r'$\sum_t L_t / (2 e^{s_t}) + s_t / 2$, $s$ learned',
        convention=(
            'the regression form, 1 / (2 sigma²), for every kind of task, as LibMTL and the baselines of the Rep-MTL '
            'paper'
        ),
        unlabelled='left out, its s too (gradient 0)',
        step='half of that of `ew` at the start',
        state="s (T), and the optimizer's for it",
    )

    sized_by = 'log_variance_T'

    def terms(self, losses_T: Tensor, learned_T: Tensor) -> Tensor:
        """Returns ``L_t / (2 exp(s_t)) + s_t / 2``, (T,)."""
        return losses_T * torch.exp(-learned_T) / 2 + learned_T / 2
