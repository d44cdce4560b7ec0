from typing import Literal

import torch
from torch import Tensor

from .base import GramianAggregator


class PCGrad(GramianAggregator):
    """Projects each task's gradient onto the normal plane of every gradient that it conflicts with, in random order.

    Source: Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, Algorithm 1; the projected gradients
    are summed as there. Computed in the coefficients of the original gradients, so only the Gramian is needed. An
    unlabelled task has a zero gradient: nothing conflicts with it and it adds nothing. Heads are unweighted. Combined
    once per accumulation window at parameter level, per micro-batch at representation level.

    Args:
        level: Where the gradients are taken.
        weight_heads: As in :class:`Aggregator`.
        seed: Of the random orders; the same on all ranks.
    """

    def __init__(
        self,
        level: Literal['parameter', 'representation'] = 'parameter',
        weight_heads: bool | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(level, weight_heads)
        self.generator = torch.Generator().manual_seed(seed)

    def weights(self, gramian_TT: Tensor, losses_T: Tensor) -> Tensor:
        """Returns the coefficients (T,) of the original gradients in the sum of the projected ones."""
        del losses_T
        num_tasks = len(gramian_TT)
        coefficients_TT = torch.eye(num_tasks, dtype=gramian_TT.dtype, device=gramian_TT.device)
        for i in range(num_tasks):
            for j in torch.randperm(num_tasks, generator=self.generator).tolist():
                inner = coefficients_TT[i] @ gramian_TT[:, j]
                if j != i and inner < 0 and gramian_TT[j, j] > 0:
                    coefficients_TT[i, j] -= inner / gramian_TT[j, j]
        return coefficients_TT.sum(0)

    def get_extra_state(self) -> Tensor:
        """The state of the random orders, for ``state_dict()``."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Restores what :meth:`get_extra_state` returned."""
        self.generator.set_state(state.cpu())
