"""Gradient Vaccine. Dimensions: T tasks, S the subset of them that has a gradient."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mmrepmtl.methods.facts import Facts

from .base import GramianAggregator
from .solvers import ROUNDING, cosines_and_norms, present_tasks

#: Targets of the cosine are reached up to here: a gradient cannot be made parallel to another by adding to it.
_LARGEST_TARGET = 1 - 1e-6


class GradVac(GramianAggregator):
    """Gradient Vaccine: raises the cosine of each pair of task gradients to its moving average.

    For each task i, over the others j in random order: with the cosine c of the (already changed) g_i' and g_j, and the
    target c* that is the moving average of c, if ``c < c*``

        g_i' += |g_i'| (c* sqrt(1 - c^2) - c sqrt(1 - c*^2)) / (|g_j| sqrt(1 - c*^2)) g_j,

    after which the cosine is c*; then ``c* <- (1 - beta) c* + beta c``. The g_i' are summed. Source: Wang et al.,
    "Gradient Vaccine", ICLR 2021, Eq. 2-4 and Algorithm 1. With targets of 0 it is PCGrad. Computed in coefficients of
    the original gradients, so only the Gramian is needed; the cosines are of whole gradients (the paper's
    "whole model" granularity), and a level of Z is not treated separately.

    The average is updated for every pair, as in the paper; LibMTL updates it only where ``c < c*``, so that it can only
    fall from its start at 0. Scale: the sum. Heads are unweighted. A task without a gradient changes nothing, weight
    and averages included; where g_i' is cancelled to nothing its pairs are passed over. Combined once per accumulation
    window at parameter level, per micro-batch at representation level.

    Args:
        level: The place of the gradients, as in :class:`Aggregator`.
        weight_heads: As in :class:`Aggregator`.
        beta: Rate of the moving averages, in [0, 1]; LibMTL and ``torchjd`` have 0.5.
        seed: Seed of the random orders; the same on all ranks.

    Raises:
        ValueError: For a ``beta`` outside [0, 1].
    """

    facts = Facts(
        paper='Wang et al., Gradient Vaccine, ICLR 2021, Eq. 2-4, Algorithm 1',
        rule='the cosine of each pair is raised to its moving average; summed',
        convention=(
            'targets move for every pair (paper), not only where the cosine is below (LibMTL: targets can only fall); '
            'beta 0.01 (LibMTL, torchjd: 0.5); whole-model cosines'
        ),
        unlabelled='out of all pairs, its targets stay',
        step='that of `ew`',
        state='target cosines (T x T)',
    )

    targets_TT: Tensor | None

    def __init__(
        self,
        level: Literal['parameter', 'representation'] = 'parameter',
        weight_heads: bool | None = None,
        beta: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__(level, weight_heads)
        if not 0 <= beta <= 1:
            raise ValueError(f'GradVac: beta must be in [0, 1], got {beta}')
        self.beta = beta
        self.generator = torch.Generator().manual_seed(seed)
        self.register_buffer('targets_TT', None)

    def setup(self, num_tasks: int, sizes: Sequence[int] | None = None) -> None:
        """Makes the moving averages, at first 0."""
        if self.targets_TT is None:
            self.targets_TT = torch.zeros(num_tasks, num_tasks, dtype=torch.float64)

    def weights(self, gramian_TT: Tensor, losses_T: Tensor) -> Tensor:
        """Returns the coefficients (T,) of the original gradients in the sum of the changed ones."""
        self.setup(len(gramian_TT))
        assert self.targets_TT is not None
        num_tasks, present_T = len(gramian_TT), present_tasks(gramian_TT)
        orders = [torch.randperm(num_tasks, generator=self.generator).tolist() for _ in range(num_tasks)]
        present = present_T.nonzero().flatten().tolist()
        weights_T = torch.zeros_like(gramian_TT[0])
        if not present:
            return weights_T
        cosines_SS, norms_S = cosines_and_norms(gramian_TT[present][:, present])
        targets_TT = self.targets_TT.cpu().clone()
        position = {task: p for p, task in enumerate(present)}
        for task in present:
            order = [position[j] for j in orders[task] if j != task and j in position]
            targets_S = targets_TT[task, present]
            changed_S = self._vaccinate(position[task], order, cosines_SS, targets_S)
            targets_TT[task, present] = targets_S
            weights_T[present] += changed_S * norms_S[position[task]] / norms_S
        self.targets_TT.copy_(targets_TT)
        return weights_T

    def _vaccinate(self, i: int, order: list[int], cosines_SS: Tensor, targets_S: Tensor) -> Tensor:
        """The coefficients (S,) of the unit gradients in g_i' over the norm of g_i; updates ``targets_S``."""
        changed_S = torch.zeros_like(targets_S)
        changed_S[i] = 1.0
        for j in order:
            square = float(changed_S @ cosines_SS @ changed_S)
            if square <= ROUNDING:
                break
            norm, target = square**0.5, min(float(targets_S[j]), _LARGEST_TARGET)
            cosine = min(max(float(cosines_SS[j] @ changed_S) / norm, -1.0), 1.0)
            if cosine < target:
                changed_S[j] += norm * (target * ((1 - cosine**2) / (1 - target**2)) ** 0.5 - cosine)
            targets_S[j] += self.beta * (cosine - targets_S[j])
        return changed_S

    def get_extra_state(self) -> Tensor:
        """The state of the random orders, for ``state_dict()``."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Restores what :meth:`get_extra_state` returned."""
        self.generator.set_state(state.cpu())
