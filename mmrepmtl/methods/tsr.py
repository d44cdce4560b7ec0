"""Task-specific saliency regulation (Rep-MTL, Eq. 4-6): the entropy of who owns each position.

Dimensions: T tasks, B samples, C channels, N positions.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmrepmtl.methods.collectives import Ranks
from mmrepmtl.methods.csa import as_positions


class Ownership(NamedTuple):
    """The loss (scalar), and detached: this process's own mean entropy (scalar) and share of each task (T,)."""

    loss: Tensor
    entropy: Tensor
    share_T: Tensor


def task_saliency_regulation(
    saliency: Tensor, floor: float = 0.0, *, gather: bool = False, process_group: Any = None
) -> Tensor:
    """TSR: mean over samples and positions of the entropy of the tasks' shares in the (channel mean) saliency.

    Invariant to the scale of the saliency. A task's zero saliency adds nothing; a position where all are zero counts
    with entropy 0. It can be differentiated any number of times.

    Args:
        saliency: (T, B, C), (T, B, C, N) or (T, B, C, H, W).
        floor: Positions whose summed magnitude is below this fraction of the batch mean are left out of the mean.
        gather: The *mean over ranks* of the value and of its gradient is that of the batch of all processes, also where
            they hold different numbers of samples. All ranks must call it.
        process_group: The processes of ``gather``; ``None`` is the default group.

    Returns:
        A scalar in [0, ln T].
    """
    return ownership(as_positions(saliency), floor, Ranks(process_group, gather)).loss


def ownership(saliency_TBCN: Tensor, floor: float, ranks: Ranks) -> Ownership:
    """TSR over the samples of ``ranks``; see :func:`task_saliency_regulation`."""
    magnitude_TBN = saliency_TBCN.mean(2).abs()
    total_BN = magnitude_TBN.detach().sum(0)
    # The shares are invariant to a factor per position; dividing by the largest keeps the smallest saliencies exact.
    largest_BN = magnitude_TBN.detach().amax(0)
    owned_BN = largest_BN > 0
    relative_TBN = magnitude_TBN / torch.where(owned_BN, largest_BN, 1)
    share_TBN = relative_TBN / torch.where(owned_BN, relative_TBN.sum(0), 1)
    # ln 1 = 0 in place of 0 ln 0, whose gradient is NaN.
    entropy_BN = -(share_TBN * torch.where(share_TBN > 0, share_TBN, 1).log()).sum(0)

    kept_BN = torch.ones_like(owned_BN)
    if floor > 0:
        amount, count = ranks.sum(torch.stack([total_BN.sum(), total_BN.new_tensor(total_BN.numel())]))
        kept_BN = total_BN >= floor * amount / count.clamp(min=1)
    own_count = kept_BN.sum().to(total_BN)
    entropy = torch.where(kept_BN, entropy_BN, 0).sum()
    # With uneven ranks the mean of the ranks' means is not the mean: each counts by its number of positions.
    loss = ranks.size * entropy / ranks.sum(own_count).clamp(min=1)
    counted_BN = kept_BN & owned_BN
    share_T = torch.where(counted_BN, share_TBN.detach(), 0).sum((1, 2)) / counted_BN.sum().clamp(min=1)
    return Ownership(loss, entropy.detach() / own_count.clamp(min=1), share_T)
