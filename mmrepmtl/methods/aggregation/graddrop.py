"""GradDrop.

Dimensions: T tasks, P elements of the shared parameters, C columns of one piece of them, B samples (at Z), F
elements of one sample of Z, E elements that a sign is drawn for.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from mmrepmtl.methods.facts import Facts

from .base import Aggregator
from .state import pieces


class GradDrop(Aggregator):
    """Keeps, per coordinate, the gradients of one sign only, drawn with the probability of that sign (GradDrop).

    Source: Chen et al., "Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign Dropout", NeurIPS
    2020, Eq. 1 and Algorithm 1 with f = identity. With the positive sign purity ``P = (1 + sum_t g_t / sum_t |g_t|) /
    2`` and ``U`` uniform in [0, 1), a coordinate keeps its positive gradients if ``U < P`` and its negative ones
    otherwise; what is not kept is multiplied by ``leak``. The result is the sum over tasks; the heads are unweighted.

    At representation level, the paper's and the default, the gradients of a sample are first multiplied by the sign of
    Z and summed over the global batch; purity and signs are those of these sums, with one ``U`` per feature position,
    so that a task's gradient at a position is kept or dropped for all samples alike. A task whose sum is exactly 0 (Z
    is 0 in every sample) has no sign and passes, as in the authors' code; the formula as printed would stop an encoder
    whose output starts at 0. With accumulation every micro-batch is drawn for itself. The authors' rescaling of the
    result by its norm is not in the paper and not done here.

    At parameter level the same is done per element of the combined gradient, without Z, once per accumulation window,
    as parts of the public comparisons do. An unlabelled task has a zero gradient: it has no share in the purity and
    adds nothing.

    Args:
        leak: Share of the dropped gradients that is let through, in [0, 1]; 0 in the paper, 1 is the plain sum.
        level: The place of the gradients, as in :class:`Aggregator`.
        weight_heads: As in :class:`Aggregator`; there are no weights, so True is refused.
        seed: Seed of the draws; the same on all ranks.

    Raises:
        ValueError: If ``leak`` is outside [0, 1].
    """

    facts = Facts(
        paper='Chen et al., Just Pick a Sign, NeurIPS 2020, Eq. 1, Algorithm 1',
        rule=(
            r'per position the gradients of one sign are kept; the positive ones with probability $(1 + \sum_t '
            r'g_t / \sum_t \lvert g_t \rvert) / 2$'
        ),
        convention=(
            'at Z, as the paper: signs times the sign of Z, summed over the global batch, one draw for all samples; '
            "where that sum is 0 the task passes; no rescaling (authors' code). At parameters without Z, per element, "
            'as in public comparisons'
        ),
        unlabelled='no share in the purity, adds nothing',
        step='that of `ew`',
        reduced='at Z sums over the batch',
    )

    has_weights = False

    def __init__(
        self,
        leak: float = 0.0,
        level: Literal['parameter', 'representation'] = 'representation',
        weight_heads: bool | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(level, weight_heads)
        if not 0 <= leak <= 1:
            raise ValueError(f'GradDrop: leak must be in [0, 1], got {leak}')
        self.leak, self.seed = leak, seed
        self._generator: torch.Generator | None = None
        self._saved: Tensor | None = None

    @torch.no_grad()
    def forward(self, gradients_TP: Tensor, losses_T: Tensor) -> tuple[Tensor, None]:
        """Returns the sum (P,) of what is kept of each element."""
        combined_P = torch.empty_like(gradients_TP[0])
        for piece in pieces(gradients_TP.shape[1]):
            rows_TC = gradients_TP[:, piece]
            positive_C, negative_C = rows_TC.clamp(min=0).sum(0), rows_TC.clamp(max=0).sum(0)
            positive_kept = self._draw(positive_C, negative_C)
            combined_P[piece] = torch.where(
                positive_kept, positive_C + self.leak * negative_C, self.leak * positive_C + negative_C
            )
        return combined_P, None

    @torch.no_grad()
    def at_representation(
        self, gradients_TB: Tensor, representation_B: Tensor, sum_over_ranks: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Returns the sum (B, ...) of what is kept of each task's gradient at Z."""
        sign_B = representation_B.sign()
        dtype = torch.promote_types(gradients_TB.dtype, torch.float32)
        sums_TF = sum_over_ranks(torch.stack([(grad_B * sign_B).sum(0, dtype=dtype) for grad_B in gradients_TB]))
        positive_kept = self._draw(sums_TF.clamp(min=0).sum(0), sums_TF.clamp(max=0).sum(0))
        kept_TF = torch.where(positive_kept, sums_TF >= 0, sums_TF <= 0)
        factors_TF = torch.where(kept_TF, 1.0, self.leak).to(gradients_TB.dtype)
        combined_B = torch.zeros_like(gradients_TB[0])
        for grad_B, factor_F in zip(gradients_TB, factors_TF, strict=True):
            combined_B.addcmul_(grad_B, factor_F)
        return combined_B

    def _draw(self, positive_E: Tensor, negative_E: Tensor) -> Tensor:
        """Whether the positive sign is drawn: ``U < P`` without P's quotient, so that one sign alone always stays."""
        generator = self._generator_on(positive_E.device)
        uniform_E = torch.rand(positive_E.shape, generator=generator, device=positive_E.device, dtype=positive_E.dtype)
        return -negative_E * uniform_E < positive_E * (1 - uniform_E)

    def _generator_on(self, device: torch.device) -> torch.Generator:
        """The own random state, which lives where the gradients are."""
        if self._generator is None or self._generator.device.type != device.type:
            self._generator = torch.Generator(device).manual_seed(self.seed)
        if self._saved is not None:
            if self._saved.shape != self._generator.get_state().shape:
                raise ValueError(
                    f'GradDrop: the saved random state is not of a {device.type!r} device; resume on the '
                    'kind of device that the checkpoint was written on'
                )
            self._generator.set_state(self._saved)
            self._saved = None
        return self._generator

    def get_extra_state(self) -> Tensor:
        """The random state for ``state_dict()``; empty before the first draw."""
        if self._saved is not None:
            return self._saved
        return torch.empty(0, dtype=torch.uint8) if self._generator is None else self._generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Restores what :meth:`get_extra_state` returned."""
        self._generator = None
        self._saved = state.cpu().clone() if state.numel() else None
