"""GradNorm. Dimensions: T tasks, S the subset of them that has a gradient."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mmrepmtl.methods.facts import Facts
from mmrepmtl.methods.positive import check_positive

from .base import GramianAggregator
from .solvers import present_tasks


class GradNorm(GramianAggregator):
    """GradNorm: loss weights that are learned so that tasks which train slowly have the larger gradients.

    With ``G_t = w_t |g_t|``, its mean G and the relative inverse training rate ``r_t = (L_t / L_t(0)) / mean`` the
    weights descend ``sum_t |G_t - G r_t^alpha|``, G and r constant, and are scaled back to sum T. The step of the model
    uses the weights before that update. Source: Chen et al., "GradNorm: Gradient Normalization for Adaptive Loss
    Balancing in Deep Multitask Networks", ICML 2018, Eq. 1-2 and Algorithm 1.

    The paper descends in w, where a weight can become negative and the step depends on the scale of the losses. Here:
    in log w (as LibMTL's softmax), with the gradient divided by G, so that ``log w_t`` moves by ``-lr sign(G_t - G
    r_t^alpha) G_t / G``. The gradients are those of all shared parameters or of Z (the paper: of the last shared
    layer); L_t(0) is the loss when the task is first seen (LibMTL: the mean of the first epoch, without weights in it).

    Scale: weights of sum T, at first all 1: equal weighting. They are loss weights, so heads are weighted as well. The
    weights of the tasks that have a gradient are scaled to sum to the number of these; a task without one keeps its
    state, and one that is the only one has weight 1. Combined and updated once per accumulation window at parameter
    level, per micro-batch at representation level.

    Args:
        level: The place of the gradients, as in :class:`Aggregator`.
        weight_heads: As in :class:`Aggregator`.
        alpha: Strength of the pull to a common training rate; 1.5 is the paper's for NYUv2.
        lr: Learning rate of the weights (0.025 in the paper).

    Raises:
        ValueError: For a loss that is not positive, or an ``lr`` that is negative.
    """

    facts = Facts(
        paper='Chen et al., ICML 2018, Eq. 1-2, Algorithm 1',
        rule=(
            r'$w$ descends $\sum_t \lvert G_t - \bar G r_t^{\alpha} \rvert$, $G_t = w_t \lVert g_t \rVert$, '
            r'$\bar G$ their mean, $r_t$ the relative $L_t / L_t(0)$'
        ),
        convention=(
            'descends in log w with the gradient over mean(G): no negative weights, no scale (paper: in w); gradients '
            'of all shared parameters or of Z (paper: of the last shared layer); L(0) of the first batch with the '
            'task (LibMTL: mean of an epoch)'
        ),
        unlabelled='weights sum to the number of the others; its w stays',
        step='that of `ew`',
        state='w, L(0) (T each)',
        reduced='losses',
    )

    loss_transform = 'own'
    weights_heads_by_default = True
    weights_T: Tensor | None
    initial_T: Tensor | None

    def __init__(
        self,
        level: Literal['parameter', 'representation'] = 'parameter',
        weight_heads: bool | None = None,
        alpha: float = 1.5,
        lr: float = 0.025,
    ) -> None:
        super().__init__(level, weight_heads)
        if not lr >= 0:
            raise ValueError(f'GradNorm: lr must not be negative, got {lr}')
        self.alpha, self.lr = alpha, lr
        self.register_buffer('weights_T', None)
        self.register_buffer('initial_T', None)

    def setup(self, num_tasks: int, sizes: Sequence[int] | None = None) -> None:
        """Makes the weights, at first 1, and the initial losses, 0 until they are known."""
        if self.weights_T is None:
            self.weights_T = torch.ones(num_tasks, dtype=torch.float64)
            self.initial_T = torch.zeros(num_tasks, dtype=torch.float64)

    def weights(self, gramian_TT: Tensor, losses_T: Tensor) -> Tensor:
        """Returns the weights (T,), of sum T over the tasks that have a gradient, and makes one step of their state."""
        self.setup(len(gramian_TT))
        assert self.weights_T is not None and self.initial_T is not None
        present_T = present_tasks(gramian_TT)
        used_T = torch.zeros_like(gramian_TT[0])
        if not present_T.any():
            return used_T
        losses_S = losses_T.to(used_T)[present_T]
        check_positive(self, losses_T.to(used_T), present_T)
        state_T, initial_T = self.weights_T.cpu().clone(), self.initial_T.cpu().clone()
        initial_T[present_T] = torch.where(initial_T[present_T] > 0, initial_T[present_T], losses_S)
        state_S = state_T[present_T]
        used_S = state_S * (len(state_S) / state_S.sum())
        sizes_S = used_S * gramian_TT.diagonal()[present_T].sqrt()
        rates_S = losses_S / initial_T[present_T]
        sizes_S = sizes_S / sizes_S.mean()
        step_S = torch.sign(sizes_S - (rates_S / rates_S.mean()) ** self.alpha) * sizes_S
        updated_S = state_S * torch.exp(-self.lr * step_S)
        state_T[present_T] = updated_S * (state_S.sum() / updated_S.sum())
        self.weights_T.copy_(state_T)
        self.initial_T.copy_(initial_T)
        used_T[present_T] = used_S
        return used_T
