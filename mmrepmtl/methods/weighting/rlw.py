"""RLW. Dimensions: T tasks."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmrepmtl.methods.facts import Facts

from .base import Weighting
from .history import labelled_mask, masked_softmax, weighted_sum


class RLW(Weighting):
    """Random loss weighting (RLW): weights drawn anew in each step.

    Source: Lin et al., "Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task Learning", TMLR
    2022, Algorithm 2: the softmax of T standard normal numbers. The weights sum to 1, as in the paper, its authors'
    LibMTL and Nash-MTL's code: 1/T of the learning rate of the plain sum. IGB's code multiplies them by T.

    Accumulation: one draw for all micro-batches of an optimizer step, so that they equal one batch. DDP: every rank
    draws the same numbers, from a generator of the method's own. An unlabelled task is left out: the softmax is over
    the labelled ones, and as many numbers are drawn as ever.

    Args:
        seed: Seed of the draws; the same on all ranks.
    """

    facts = Facts(
        paper='Lin et al., TMLR 2022, Algorithm 2',
        rule=r'$\sum_t w_t L_t$, $w = \mathrm{softmax}(x)$, $x_t \sim N(0, 1)$ drawn anew in each step',
        convention=(
            "weights sum to 1 (paper, LibMTL, Nash-MTL's code), so 1/T of the step of `ew`; IGB's code multiplies by T"
        ),
        unlabelled='left out of the softmax; as many numbers are drawn',
        step='1/T of that of `ew`',
        state='the draw of an unfinished step',
        accumulation='one draw for the window',
    )

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)
        self.draw_T: Tensor | None = None
        self._undrawn: Tensor | None = None  # the generator's state before the draw of an unfinished step

    def forward(self, losses_T: Tensor, labelled_T: Tensor | None = None, advance: bool = True) -> Tensor:
        """Returns ``sum_t w_t L_t`` with this step's draw."""
        if self.draw_T is None:
            self._undrawn = self.generator.get_state()
            self.draw_T = torch.randn(len(losses_T), generator=self.generator, dtype=torch.float64)
        mask_T = labelled_mask(losses_T, labelled_T)
        weights_T = masked_softmax(self.draw_T.to(losses_T.device), mask_T)
        if advance:
            self.end_step()
        return weighted_sum(losses_T, weights_T)

    def end_step(self) -> None:
        """The next step has a draw of its own."""
        self.draw_T = None

    def drop_window(self) -> None:
        """Takes back the draw of an unfinished step."""
        if self.draw_T is not None and self._undrawn is not None:
            self.generator.set_state(self._undrawn)
            self.draw_T = None

    def get_extra_state(self) -> dict[str, Any]:
        """The generator's states and the draw of an unfinished step, for ``state_dict()``."""
        undrawn = None if self.draw_T is None else self._undrawn
        return dict(generator=self.generator.get_state(), draw_T=self.draw_T, undrawn=undrawn)

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`get_extra_state` returned."""
        self.generator.set_state(state['generator'].cpu())
        self.draw_T = None if state['draw_T'] is None else state['draw_T'].cpu()
        undrawn = state.get('undrawn')
        self._undrawn = None if undrawn is None else undrawn.cpu()
