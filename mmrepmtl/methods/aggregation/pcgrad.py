"""PCGrad. Dimensions: S the subset of the tasks that has a gradient."""

from typing import Literal

import torch
from torch import Tensor

from mmrepmtl.methods.facts import Facts

from .base import GramianAggregator
from .torchjd import make_solver, solve_with_torchjd


class PCGrad(GramianAggregator):
    """Projects each task's gradient onto the normal plane of every gradient that it conflicts with, in random order.

    Source: Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, Algorithm 1; the projected gradients
    are summed as there. Computed by ``torchjd`` in the coefficients of the original gradients, so only the Gramian is
    needed; its random orders are drawn from a state of this object. Heads are unweighted.

    Tasks without a gradient are left out. Combined once per accumulation window at parameter level, per micro-batch
    at representation level.

    Args:
        level: The place of the gradients, as in :class:`Aggregator`.
        weight_heads: As in :class:`Aggregator`.
        seed: Seed of the random orders; the same on all ranks.

    Raises:
        ImportError: If torchjd is not installed.
    """

    facts = Facts(
        paper='Yu et al., Gradient Surgery, NeurIPS 2020, Algorithm 1',
        rule='each $g_t$ projected onto the normal plane of those that it conflicts with, in random order; summed',
        convention='the sum, as in the algorithm',
        unlabelled='conflicts with nothing, adds nothing',
        step='that of `ew`',
    )

    def __init__(
        self,
        level: Literal['parameter', 'representation'] = 'parameter',
        weight_heads: bool | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(level, weight_heads)
        self.solver = make_solver('PCGradWeighting')
        self.generator = torch.Generator().manual_seed(seed)

    def solve(self, gramian_SS: Tensor, losses_S: Tensor) -> Tensor:
        """Returns the coefficients (S,) of the original gradients in the sum of the projected ones."""
        return solve_with_torchjd(self.solver, gramian_SS, self.generator)

    def get_extra_state(self) -> Tensor:
        """The state of the random orders, for ``state_dict()``."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Restores what :meth:`get_extra_state` returned."""
        self.generator.set_state(state.cpu())
