"""MTAdam.

Dimensions: T tasks, P elements of the shared parameters, C columns of one piece of them, L layers (tensors
of them).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mmrepmtl.methods.facts import Facts

from .state import LayerwiseAggregator, check_fractions, labelled_tasks, layer_norms, layer_pieces


class MTAdam(LayerwiseAggregator):
    """Adam with moments per task, of gradients that are brought to the first task's norm in each layer (MTAdam).

    Source: Malkiel and Wolf, "MTAdam: Automatic Balancing of Multiple Training Loss Terms", EMNLP 2021. With the moving
    norms ``n`` (decay beta3, from the first norm on) of each task in each layer, and Adam's bias corrections,

        b_t = g_t n_anchor / n_t,   m_t, v_t = Adam's moments of b_t,   update = sum_t m_t / (max_s sqrt(v_s) + eps)

    The largest second moment of all tasks divides every task, as in the paper and its code. The result is a finished
    step in units of the learning rate: it is subtracted as it is and does not pass through Adam again; heads keep the
    run's optimizer. For one task this is Adam (without weight decay).

    The anchor of a layer is the first task that has had a gradient there. Moments are kept in units of the layer's
    first anchor gradient (its root mean square), and ``eps`` is relative to that: losses of 1e-6 and of 1e6 train
    alike, and a float32 square cannot vanish. If an earlier task appears later, and takes the anchor over, the unit
    follows.

    A gradient that belongs to no task (of penalties) joins the balanced gradient of the first task of the batch,
    which has the anchor's scale: its strength relative to the anchor's loss is the one that was asked for. It is no
    part of ``n``.

    An unlabelled task keeps moments, norms and count, adds nothing to the update and is no part of the maximum; a step
    without any labelled task is none, whatever the penalties say. A gradient of exactly zero in one layer of a labelled
    task leaves its norm there as it is.

    Only at parameter level: the moments belong to parameters. Combined once per accumulation window.

    Args:
        betas: Decay of the first moments, the second moments and the norms.
        eps: Added to the root of the second moment, relative to the size of the anchor's first gradient; above 0.
        level: As in :class:`Aggregator`.
        weight_heads: As in :class:`Aggregator`; an update has no weights, so True is refused.

    Raises:
        ValueError: For arguments out of range, tasks or layers that changed.
    """

    facts = Facts(
        paper='Malkiel and Wolf, EMNLP 2021',
        rule=(
            r"$\sum_t m_t / \max_s \sqrt{v_s}$, $m_t$ and $v_t$ Adam's moments of $g_t$ at the first task's "
            'norm in each layer'
        ),
        convention=(
            "eps relative to the anchor's first gradient, so that units do not matter; the step does not pass through "
            'Adam again, weight decay is decoupled, `clip_grad` is refused'
        ),
        unlabelled='keeps moments, norms and count; no part of the maximum',
        step='in units of the learning rate, like Adam',
        state='2 T copies (moments), norms (T x layers), anchors',
        heads="the run's optimizer",
    )

    levels = ('parameter',)
    has_weights = False
    returns = 'update'

    def __init__(
        self,
        betas: Sequence[float] = (0.9, 0.999, 0.9),
        eps: float = 1e-8,
        level: Literal['parameter'] = 'parameter',
        weight_heads: bool | None = None,
    ) -> None:
        names = ('first_TP', 'second_TP', 'counts_T', 'norms_TL', 'anchor_L', 'unit_L')
        super().__init__(names, level, weight_heads)
        if len(betas) != 3:
            raise ValueError(f'MTAdam: betas must be three numbers, got {tuple(betas)}')
        check_fractions('MTAdam', beta1=betas[0], beta2=betas[1], beta3=betas[2])
        if not eps > 0:
            raise ValueError(f'MTAdam: eps must be positive, got {eps}')
        self.betas, self.eps = tuple(betas), eps

    @torch.no_grad()
    def forward(self, gradients_TP: Tensor, losses_T: Tensor, extra_P: Tensor | None = None) -> tuple[Tensor, None]:
        """Combines the gradients into a finished step.

        Args:
            gradients_TP: One row per task, (T, P).
            losses_T: Not used.
            extra_P: The gradient that belongs to no task, (P,).

        Returns:
            What is to be subtracted from the shared parameters, divided by the learning rate, (P,), and None.
        """
        sizes = self.layers(gradients_TP)
        norms_TL = layer_norms(gradients_TP, sizes)
        shape, device = gradients_TP.shape, gradients_TP.device
        first_TP, second_TP = (
            self.state(name, shape, device, gradients_TP.dtype) for name in ('first_TP', 'second_TP')
        )
        counts_T = self.state('counts_T', shape[:1], device, torch.int64)
        factors_TL, unit_L = self._balance(norms_TL)
        factors_TL = factors_TL.to(gradients_TP.dtype)
        per_unit_L = torch.where(unit_L > 0, 1 / unit_L, 0.0).to(gradients_TP.dtype)
        here = labelled_tasks(norms_TL.sum(1))
        counts_T[here] += 1
        counts = counts_T.tolist()
        update_P = torch.zeros_like(gradients_TP[0])
        for layer, piece in layer_pieces(sizes) if here else ():
            total_C = update_P[piece]
            largest_C = torch.zeros_like(total_C)
            for t in here:
                balanced_C = gradients_TP[t, piece] * factors_TL[t, layer]
                if extra_P is not None and t == here[0]:
                    balanced_C.addcmul_(extra_P[piece], per_unit_L[layer])
                self._moments(first_TP[t, piece], second_TP[t, piece], balanced_C, counts[t], total_C, largest_C)
            total_C.div_(largest_C.sqrt_().add_(self.eps))
        return update_P, None

    def _balance(self, norms_TL: Tensor) -> tuple[Tensor, Tensor]:
        """Moves norms, anchors and units on.

        Returns:
            The factor of each task, ``n_anchor / n_t / unit``, 0 without a norm, (T, L), and the units (L,).
        """
        assert self.ends_L is not None  # made by layers()
        moving_TL = self.state('norms_TL', norms_TL.shape, norms_TL.device)
        anchor_L = self.state('anchor_L', norms_TL.shape[1:], norms_TL.device, torch.int64)
        unit_L = self.state('unit_L', norms_TL.shape[1:], norms_TL.device)
        average_TL = torch.where(moving_TL > 0, moving_TL.lerp(norms_TL, 1 - self.betas[2]), norms_TL)
        moving_TL.copy_(torch.where(norms_TL > 0, average_TL, moving_TL))
        before_L = moving_TL.gather(0, anchor_L[None])[0]
        anchor_L.copy_((moving_TL > 0).int().argmax(0))
        now_L = moving_TL.gather(0, anchor_L[None])[0]
        sizes_L = self.ends_L.diff(prepend=self.ends_L.new_zeros(1))
        unit_L.copy_(torch.where(unit_L > 0, unit_L * (now_L / before_L), now_L / sizes_L.double().sqrt()))
        return torch.where(moving_TL > 0, now_L / moving_TL / unit_L, 0.0), unit_L

    def _moments(
        self, first_C: Tensor, second_C: Tensor, balanced_C: Tensor, count: int, total_C: Tensor, largest_C: Tensor
    ) -> None:
        """Moves one task's moments on; without their bias towards 0 they join the sum and the maximum of all tasks'."""
        beta1, beta2, _ = self.betas
        first_C.lerp_(balanced_C, 1 - beta1)
        second_C.mul_(beta2).addcmul_(balanced_C, balanced_C, value=1 - beta2)
        total_C.add_(first_C, alpha=1 / (1 - beta1**count))
        torch.maximum(largest_C, torch.mul(second_C, 1 / (1 - beta2**count), out=balanced_C), out=largest_C)
