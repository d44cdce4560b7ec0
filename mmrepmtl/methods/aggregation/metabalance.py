"""MetaBalance. Dimensions: T tasks, P elements of the shared parameters, L layers (shared parameter tensors)."""

from typing import Literal

import torch
from torch import Tensor

from mmrepmtl.methods.facts import Facts

from .state import LayerwiseAggregator, check_fractions, layer_norms, layer_pieces, scaled_sum


class MetaBalance(LayerwiseAggregator):
    """Brings each auxiliary task's gradient near to the norm of the target task's, layer by layer (MetaBalance).

    Source: He et al., "MetaBalance: Improving Multi-Task Recommendations via Adapting Gradient Magnitudes of Auxiliary
    Tasks", WWW 2022, Algorithm 1: with the moving averages ``m`` of the gradient norms in a layer,
    ``g_t <- g_t (r m_target / m_t + 1 - r)``; the result is the sum over tasks. The heads are unweighted.

    The averages start at 0 and are divided by ``1 - beta^k``: the quotient, all that is used, is that of the paper as
    long as no task is missing, and stays right when one is. A task whose gradient in a layer is exactly zero
    (unlabelled, or the layer is not in its path) leaves its average and count there untouched and adds nothing. A
    target that is not labelled still sets the norm, by its last average; in a layer that it has never reached nothing
    is scaled (public code would multiply by 1 - r there).

    Only at parameter level: the averages belong to layers, and Z is none. Combined once per accumulation window.

    Args:
        target: Index of the target task; 0, the first loss, in the authors' code.
        relax: ``r`` in [0, 1]: 0 leaves the gradients as they are, 1 makes the norms equal; 0.7 in the authors' code.
        beta: Decay of the averages.
        strategy: The auxiliary gradients that are scaled, by their average: ``'both'`` kinds, as in the authors' code,
            or only larger ones (``'reduce'``) or smaller ones (``'enlarge'``) than the target's; the paper's three.
        level: As in :class:`Aggregator`.
        weight_heads: As in :class:`Aggregator`; the factors differ from layer to layer, so True is refused.

    Raises:
        ValueError: For arguments outside these ranges, a target that does not exist, layers that changed.
    """

    facts = Facts(
        paper='He et al., WWW 2022, Algorithm 1',
        rule=r'per layer $g_t \leftarrow g_t (r m_{\mathrm{target}} / m_t + 1 - r)$, $m$ moving norms; summed',
        convention=(
            'moving norms divided by 1 - beta^k, so that a missing task is no error; the target is the first task, '
            "relax 0.7 (authors' code)"
        ),
        unlabelled='norms stay, adds nothing; as target it still sets the norm',
        step='that of `ew`',
        state='norms, counts (T x layers)',
    )

    levels = ('parameter',)
    has_weights = False

    def __init__(
        self,
        target: int = 0,
        relax: float = 0.7,
        beta: float = 0.9,
        strategy: Literal['both', 'reduce', 'enlarge'] = 'both',
        level: Literal['parameter'] = 'parameter',
        weight_heads: bool | None = None,
    ) -> None:
        super().__init__(('norms_TL', 'counts_TL'), level, weight_heads)
        check_fractions('MetaBalance', beta=beta)
        if not 0 <= relax <= 1:
            raise ValueError(f'MetaBalance: relax must be in [0, 1], got {relax}')
        if strategy not in ('both', 'reduce', 'enlarge'):
            raise ValueError(f"MetaBalance: strategy must be 'both', 'reduce' or 'enlarge', got {strategy!r}")
        self.target, self.relax, self.beta, self.strategy = target, relax, beta, strategy

    @torch.no_grad()
    def forward(self, gradients_TP: Tensor, losses_T: Tensor) -> tuple[Tensor, None]:
        """Returns the sum (P,) of the scaled gradients."""
        if not 0 <= self.target < len(gradients_TP):
            raise ValueError(
                f'MetaBalance: target must be the index of one of {len(gradients_TP)} tasks, got {self.target}'
            )
        sizes = self.layers(gradients_TP)
        factors_TL = self._factors(layer_norms(gradients_TP, sizes)).to(gradients_TP.dtype)
        combined_P = torch.empty_like(gradients_TP[0])
        for layer, piece in layer_pieces(sizes):
            scaled_sum(factors_TL[:, layer], gradients_TP[:, piece], combined_P[piece])
        return combined_P, None

    def _factors(self, norms_TL: Tensor) -> Tensor:
        """Moves the averages on and returns the factor of each task in each layer, (T, L)."""
        moving_TL = self.state('norms_TL', norms_TL.shape, norms_TL.device)
        counts_TL = self.state('counts_TL', norms_TL.shape, norms_TL.device, torch.int64)
        here_TL = norms_TL > 0
        moving_TL.copy_(torch.where(here_TL, self.beta * moving_TL + (1 - self.beta) * norms_TL, moving_TL))
        counts_TL += here_TL
        average_TL = moving_TL / (1 - self.beta ** counts_TL.double())  # nan where a task was never seen
        ratio_TL = (average_TL[self.target] / average_TL).nan_to_num(1.0)
        if self.strategy == 'reduce':
            ratio_TL = ratio_TL.clamp(max=1)
        elif self.strategy == 'enlarge':
            ratio_TL = ratio_TL.clamp(min=1)
        return self.relax * ratio_TL + (1 - self.relax)
