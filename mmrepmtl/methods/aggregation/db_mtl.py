"""DB-MTL. Dimensions: T tasks, P elements of the shared parameters."""

from typing import Literal

import torch
from torch import Tensor

from mmrepmtl.methods.facts import Facts
from mmrepmtl.methods.positive import check_positive

from .state import StatefulAggregator, check_fractions, labelled_tasks, magnitudes, row_norms, weighted_sum


class DBMTL(StatefulAggregator):
    """Averages the gradients of the log losses over time and gives every task's average the largest norm (DB-MTL).

    Source: Lin et al., "Dual-Balancing for Multi-Task Learning", arXiv 2308.12029, Algorithm 1. The rows are gradients
    of the losses themselves; in the task's step k

        u_t <- beta_k u_t + (1 - beta_k) g_t / L_t       beta_k = beta / k^beta_decay
        result = max_s |u_s| sum_t u_t / |u_t|

    The average is divided by the weight it has gathered, ``1 - prod beta_k``, so that the first step has its full size;
    in public code it is 1 - beta of that (0.1). Directions are the same in both. ``beta_decay`` is an option of the
    public code (default 0, as here).

    Heads minimise the log losses too (Algorithm 1): :meth:`head_weights` is ``1 / L_t``, 0 for an unlabelled task,
    whose loss reads 0. That is no weighting of the method, so ``weight_heads=True`` is refused.

    An unlabelled task keeps its average and count, is no part of the maximum and adds nothing.

    Only at parameter level: the average of gradients at Z over different batches means nothing. Combined once per
    accumulation window.

    Args:
        beta: Forgetting rate of the average, in [0, 1); 0 uses the gradients of the batch alone.
        beta_decay: Exponent of its decay with the task's count of steps.
        level: As in :class:`Aggregator`.
        weight_heads: As in :class:`Aggregator`.

    Raises:
        ValueError: If the loss of a labelled task is not positive, for rates out of range, tasks or parameters that
            changed.
    """

    facts = Facts(
        paper='Lin et al., arXiv 2308.12029, Algorithm 1',
        rule=(
            r'$\max_s \lVert u_s \rVert \sum_t u_t / \lVert u_t \rVert$, $u_t$ the moving average of $\nabla '
            r'\log L_t$'
        ),
        convention=(
            'average over the weight that it has gathered, so that the first step has its full size (public code: 1 - '
            'beta = 0.1 of it); directions are the same'
        ),
        unlabelled='average and count stay; no part of the maximum, adds nothing',
        step='in units of log losses',
        state='T copies (averages), counts',
        heads='1 / L_t, as in the algorithm',
        reduced='losses',
    )

    levels = ('parameter',)
    has_weights = False
    loss_transform = 'own'

    def __init__(
        self,
        beta: float = 0.9,
        beta_decay: float = 0.0,
        level: Literal['parameter'] = 'parameter',
        weight_heads: bool | None = None,
    ) -> None:
        super().__init__(('average_TP', 'gathered_T', 'counts_T'), level, weight_heads)
        check_fractions('DBMTL', beta=beta)
        if beta_decay < 0:
            raise ValueError(f'DBMTL: beta_decay must not be negative, got {beta_decay}')
        self.beta, self.beta_decay = beta, beta_decay

    @torch.no_grad()
    def forward(self, gradients_TP: Tensor, losses_T: Tensor) -> tuple[Tensor, None]:
        """Returns the sum (P,) of the averages, all of the largest norm."""
        here, losses = labelled_tasks(magnitudes(gradients_TP)), losses_T.tolist()
        mask_T = torch.zeros_like(losses_T, dtype=torch.bool)
        mask_T[here] = True
        check_positive(self, losses_T, mask_T, 'the method takes its logarithm and needs')
        shape, device = gradients_TP.shape, gradients_TP.device
        average_TP = self.state('average_TP', shape, device, gradients_TP.dtype)
        gathered_T = self.state('gathered_T', shape[:1], device)
        counts_T = self.state('counts_T', shape[:1], device, torch.int64)
        counts_T[here] += 1
        counts = counts_T.tolist()
        for t in here:
            rate = self.beta / counts[t] ** self.beta_decay
            average_TP[t].mul_(rate).add_(gradients_TP[t], alpha=(1 - rate) / losses[t])
            gathered_T[t] = rate * gathered_T[t] + (1 - rate)
        weights_T = torch.zeros_like(gathered_T)
        norms_T = row_norms(average_TP)
        if here:
            largest = (norms_T / gathered_T)[here].max()
            weights_T[here] = torch.where(norms_T > 0, largest / norms_T, 0.0)[here]  # averages may cancel
        return weighted_sum(weights_T, average_TP), None

    def head_weights(self, weights_T: Tensor | None, losses_T: Tensor) -> Tensor:
        """The gradient of the log loss over that of the loss, ``1 / L_t`` (T,); 0 where there is no loss."""
        return torch.where(losses_T > 0, 1 / losses_T, 0.0)
