"""ExcessMTL. Dimensions: T tasks, P elements of the shared parameters, C columns of one piece of them."""

from typing import Literal

import torch
from torch import Tensor

from mmrepmtl.methods.facts import Facts

from .state import StatefulAggregator, labelled_tasks, magnitudes, pieces, weighted_sum


class ExcessMTL(StatefulAggregator):
    """Weighs the losses by how far each task is from its optimum, as its curvature-scaled gradient tells (ExcessMTL).

    Source: He et al., "Robust Multi-Task Learning with Excess Risks", ICML 2024. The excess risk of a task is
    estimated by a second-order expansion with a diagonal curvature made of all its squared gradients so far, divided by
    the estimate of its first step, and the weights are multiplied by its exponential:

        h_t <- h_t + g_t^2,   e_t = sum_p g_tp^2 / sqrt(h_tp),   w_t <- w_t exp(eta e_t / e_t(first)),   sum_t w_t = T

    A loss weighting in its effect, so the weights are by default those of the heads too; it stands among the
    aggregators because it reads each task's gradient. They sum to T, as in public code (to 1 in the paper), so that
    the first step, which only sets the reference, is the plain sum. ``sqrt(h)`` is what is kept, so that no square
    can overflow or vanish, and where it is 0 the gradient is too: no epsilon (1e-7 in public code) sets a scale, and
    the weights do not depend on the units of the losses.

    An unlabelled task keeps ``h_t`` and its weight before normalisation; its first labelled step sets its reference.

    Only at parameter level: the curvature of coordinates of Z, which mean another sample in each batch, does not add
    up. Combined once per accumulation window.

    Args:
        eta: Step size of the weights; 0.01 in the authors' code.
        level: As in :class:`Aggregator`.
        weight_heads: As in :class:`Aggregator`.

    Raises:
        ValueError: If ``eta`` is negative; for tasks or parameters that changed.
    """

    facts = Facts(
        paper='He et al., Robust Multi-Task Learning with Excess Risks, ICML 2024',
        rule=(
            r'$w_t \leftarrow w_t \exp(\eta e_t / e_t^{\mathrm{first}})$, $e_t = \sum_p g_{tp}^2 / '
            r'\sqrt{h_{tp}}$, $h_t$ the sum of all $g_t^2$'
        ),
        convention=(
            'weights sum to T (public code; paper: 1), so that the first step is `ew`; no epsilon, so that units do '
            'not matter'
        ),
        unlabelled=(
            'h and its weight stay; the weights sum to T with its share in them, and its first labelled step sets its '
            'reference'
        ),
        step='that of `ew`',
        state='T copies (sqrt h), weights',
    )

    levels = ('parameter',)
    weights_heads_by_default = True

    def __init__(
        self,
        eta: float = 0.01,
        level: Literal['parameter'] = 'parameter',
        weight_heads: bool | None = None,
    ) -> None:
        super().__init__(('curvature_TP', 'first_T', 'log_weights_T'), level, weight_heads)
        if eta < 0:
            raise ValueError(f'ExcessMTL: eta must not be negative, got {eta}')
        self.eta = eta

    @torch.no_grad()
    def forward(self, gradients_TP: Tensor, losses_T: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``sum_t w_t g_t`` (P,) and the weights (T,), which sum to T."""
        shape, device = gradients_TP.shape, gradients_TP.device
        curvature_TP = self.state('curvature_TP', shape, device, gradients_TP.dtype)
        first_T = self.state('first_T', shape[:1], device)
        log_weights_T = self.state('log_weights_T', shape[:1], device)
        excess_T = torch.zeros_like(first_T)
        for t in labelled_tasks(magnitudes(gradients_TP)):
            excess_T[t] = self._excess(gradients_TP[t], curvature_TP[t])
        # Unlabelled tasks have an excess of 0, which changes nothing; in its first step a task has no reference yet.
        log_weights_T += torch.where(first_T > 0, self.eta * excess_T / first_T, 0.0)
        first_T.copy_(torch.where(first_T > 0, first_T, excess_T))
        weights_T = len(gradients_TP) * log_weights_T.softmax(0)
        return weighted_sum(weights_T, gradients_TP), weights_T.to(gradients_TP.dtype)

    @staticmethod
    def _excess(gradient_P: Tensor, curvature_P: Tensor) -> Tensor:
        """Adds the gradient to the curvature (kept as its root) and returns the estimate, a float64 scalar."""
        excess = torch.zeros((), dtype=torch.float64, device=gradient_P.device)
        for piece in pieces(len(gradient_P)):
            gradient_C = gradient_P[piece]
            root_C = curvature_P[piece].hypot_(gradient_C)
            # A quotient of at most 1 times the gradient: no square that would leave the range of float32.
            share_C = gradient_C / root_C.clamp(min=torch.finfo(root_C.dtype).tiny)
            excess += share_C.mul_(gradient_C).sum(dtype=torch.float64)
        return excess
