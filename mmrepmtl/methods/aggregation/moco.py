"""MoCo. Dimensions: T tasks, S the subset of them that has a gradient, P elements of the shared parameters."""

from typing import Literal

import torch
from torch import Tensor

from mmrepmtl.methods.facts import Facts

from .base import gramian
from .solvers import project_on_simplex
from .state import StatefulAggregator, labelled_tasks, magnitudes, weighted_sum


class MoCo(StatefulAggregator):
    """Tracks each task's gradient by a moving average and moves the task weights down its common norm (MoCo).

    Source: Fernando et al., "Mitigating Gradient Bias in Multi-objective Learning: A Provably Convergent Approach",
    ICLR 2023, Algorithm 1. In step k, in the order of the public code,

        y_t    <- y_t - beta_k (y_t - g_t)                       beta_k  = beta / k^beta_decay
        lambda <- Proj(lambda - gamma_k (Y Y^T + rho I) lambda)  gamma_k = gamma / k^gamma_decay

    with the Euclidean projection onto the simplex, and the result is ``sum_t lambda_t y_t``. The heads are unweighted.

    Choices. ``y_t`` starts at the task's first gradient (zero in public code, which makes the first steps small).
    ``Y Y^T`` is divided by the mean of its diagonal: a step of the weights is then the same at any scale of the losses
    and is the paper's where the gradients have norm 1; ``rho`` is relative to that. LibMTL replaces the projection by a
    softmax of the weights, which never leaves the neighbourhood of equal ones, and multiplies normalised gradients by
    their losses; neither is in the paper nor here.

    An unlabelled task keeps ``y_t``, ``lambda_t`` and its count; the others share the step among themselves: their
    weights are normalised to sum to 1, updated, used, and put back with the sum that they had.

    Only at parameter level: the average of gradients at Z over different batches means nothing. Combined once per
    accumulation window.

    Args:
        beta: Rate of the tracking, in (0, 1].
        beta_decay: Exponent of its decay with the task's count of steps.
        gamma: Rate of the weights.
        gamma_decay: Exponent of its decay with the count of steps.
        rho: Regularisation of the weights towards equal ones.
        level: As in :class:`Aggregator`.
        weight_heads: As in :class:`Aggregator`; the weights are those of the averages, so True is refused.

    Raises:
        ValueError: For rates out of range, tasks or parameters that changed.
    """

    facts = Facts(
        paper='Fernando et al., ICLR 2023, Algorithm 1',
        rule=r'$\sum_t w_t y_t$; $y_t$ tracks $g_t$, $w \leftarrow \mathrm{Proj}(w - \gamma (Y Y^{\top} + \rho I) w)$',
        convention=(
            'y starts at the first gradient (public code: 0, small first steps); Y Yᵀ over its mean diagonal, for any '
            'scale; projection (paper), not a softmax, and gradients as they are (LibMTL: normalised, times the loss)'
        ),
        unlabelled="y, w and count stay; the others' weights are scaled to sum to 1",
        step='1/T of that of `ew`',
        state='T copies (y), w, counts',
    )

    levels = ('parameter',)
    has_weights = False

    def __init__(
        self,
        beta: float = 0.5,
        beta_decay: float = 0.5,
        gamma: float = 0.1,
        gamma_decay: float = 0.5,
        rho: float = 0.0,
        level: Literal['parameter'] = 'parameter',
        weight_heads: bool | None = None,
    ) -> None:
        super().__init__(('tracked_TP', 'lambda_T', 'counts_T', 'steps'), level, weight_heads)
        if not 0 < beta <= 1:
            raise ValueError(f'MoCo: beta must be in (0, 1], got {beta}')
        for name, value in dict(beta_decay=beta_decay, gamma=gamma, gamma_decay=gamma_decay, rho=rho).items():
            if value < 0:
                raise ValueError(f'MoCo: {name} must not be negative, got {value}')
        self.beta, self.beta_decay, self.gamma, self.gamma_decay, self.rho = beta, beta_decay, gamma, gamma_decay, rho

    @torch.no_grad()
    def forward(self, gradients_TP: Tensor, losses_T: Tensor) -> tuple[Tensor, None]:
        """Returns ``sum_t lambda_t y_t`` (P,)."""
        shape, device = gradients_TP.shape, gradients_TP.device
        tracked_TP = self.state('tracked_TP', shape, device, gradients_TP.dtype)
        lambda_T = self.state('lambda_T', shape[:1], device, fill=1 / len(gradients_TP))
        counts_T = self.state('counts_T', shape[:1], device, torch.int64)
        steps = self.state('steps', (), device, torch.int64)
        here = labelled_tasks(magnitudes(gradients_TP))
        if not here:
            return torch.zeros_like(gradients_TP[0]), None
        counts_T[here] += 1
        steps += 1
        counts = counts_T.tolist()
        for t in here:
            rate = 1.0 if counts[t] == 1 else self.beta / counts[t] ** self.beta_decay
            tracked_TP[t].lerp_(gradients_TP[t], rate)
        gramian_SS = gramian(tracked_TP).cpu()[here][:, here]
        before_S = lambda_T.cpu()[here]
        after_S = self._move(before_S, gramian_SS, self.gamma / steps.item() ** self.gamma_decay)
        weights_T = torch.zeros_like(lambda_T)
        weights_T[here] = after_S.to(device)
        lambda_T[here] = (after_S * before_S.sum()).to(device)
        return weighted_sum(weights_T, tracked_TP), None

    def _move(self, lambda_S: Tensor, gramian_SS: Tensor, rate: float) -> Tensor:
        """One projected step of the weights of the tasks at hand, which sum to 1 afterwards."""
        total = lambda_S.sum()
        lambda_S = lambda_S / total if total > 0 else torch.full_like(lambda_S, 1 / len(lambda_S))
        scale = gramian_SS.diagonal().mean()
        if scale > 0:
            gramian_SS = gramian_SS / scale
        return project_on_simplex(lambda_S - rate * (gramian_SS @ lambda_S + self.rho * lambda_S))
