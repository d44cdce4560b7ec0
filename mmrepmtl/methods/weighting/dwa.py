"""DWA. Dimensions: T tasks."""

import torch
from torch import Tensor

from mmrepmtl.methods.facts import Facts
from mmrepmtl.methods.positive import check_positive

from .history import EpochWeighting, labelled_mask, masked_softmax, weighted_sum


class DWA(EpochWeighting):
    """Dynamic weight average (DWA): tasks whose loss falls more slowly than before weigh more.

    Source: Liu, Johns and Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019, "Dynamic Weight
    Average": in epoch e

        w_t = T softmax_t(r_t / temperature),        r_t = L_t(e-1) / L_t(e-2),

    with the mean losses of the two epochs before. The weights sum to T and are equal in the first two epochs. The
    paper, its public code and LibMTL agree; Nash-MTL's code compares the last 25 iterations with the 25 before instead,
    and divides by T.

    Accumulation: a step enters the epoch's mean by the mean of its micro-batches. DDP: of the global losses. An
    unlabelled task is left out: T and the softmax count the labelled ones. It adds nothing to its epoch's mean; L(e-1)
    and L(e-2) are those of the last two epochs in which the task was labelled at all, and with fewer than two of them r
    is 1.

    Args:
        temperature: Temperature of the softmax; the higher, the more equal the weights.
        interval: Number of optimizer steps that count as an epoch; None: the trainer's epochs.

    Raises:
        ValueError: If ``temperature`` is not positive or ``interval`` is less than 1.
    """

    facts = Facts(
        paper='Liu et al., End-to-End Multi-Task Learning with Attention, CVPR 2019',
        rule=r'$\sum_t w_t L_t$, $w = T \mathrm{softmax}(r / 2)$, $r_t = L_t(e-1) / L_t(e-2)$',
        convention=(
            "epochs, and weights of sum T (paper, its code, LibMTL); Nash-MTL's code compares the last 25 iterations "
            'with the 25 before and divides by T'
        ),
        unlabelled=(
            'left out; T counts the others; its r is that of the last two epochs in which it was labelled, else 1'
        ),
        step='that of `ew`',
        state='mean losses of this epoch and of the two before',
    )

    loss_transform = 'own'
    latest_T: Tensor
    before_T: Tensor

    def __init__(self, temperature: float = 2.0, interval: int | None = None) -> None:
        if not temperature > 0:
            raise ValueError(f'DWA: temperature must be positive, got {temperature!r}')
        super().__init__(interval, latest_T=torch.nan, before_T=torch.nan)
        self.temperature = temperature

    def forward(self, losses_T: Tensor, labelled_T: Tensor | None = None, advance: bool = True) -> Tensor:
        """Returns ``sum_t w_t L_t``.

        Raises:
            ValueError: If a loss is not positive.
        """
        self.setup(len(losses_T))
        mask_T = labelled_mask(losses_T, labelled_T)
        check_positive(self, losses_T, mask_T)
        ratio_T = (self.latest_T / self.before_T).nan_to_num(nan=1.0)
        weights_T = mask_T.sum() * masked_softmax(ratio_T / self.temperature, mask_T)
        self.record(losses_T, mask_T, advance)
        return weighted_sum(losses_T, weights_T)

    def close_epoch(self, means_T: Tensor, seen_T: Tensor) -> None:
        """Moves on by one epoch, for the tasks that were seen in it."""
        self.before_T = torch.where(seen_T, self.latest_T, self.before_T)
        self.latest_T = torch.where(seen_T, means_T, self.latest_T)
