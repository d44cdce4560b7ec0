"""IMTL-L. Dimensions: T tasks."""

import torch
from torch import Tensor

from mmrepmtl.methods.facts import Facts
from mmrepmtl.methods.positive import check_positive

from .history import labelled_mask
from .learned import LearnedWeighting


class IMTLL(LearnedWeighting):
    """Impartial multi-task learning, its loss balance (IMTL-L): learned scales make all scaled losses equal to 1.

    Source: Liu et al., "Towards Impartial Multi-Task Learning", ICLR 2021, loss balance: the scalar is ``sum_t exp(s_t)
    L_t - s_t`` with s_t = 0 at the start, minimised over s_t together with the network; it is least at ``exp(s_t) L_t =
    1``. It is twice the objective of :class:`UncertaintyWeighting` at the negated parameter. The authors published no
    code; LibMTL has it as part of IMTL only.

    The scales are trained by the run's optimizer (``weighting_lr``). Plain SGD needs a rate well below one over the
    largest loss there, Adam does not care.

    Accumulation: the scalar is linear in the losses, so micro-batches equal one batch, in the scales' gradients too.
    DDP: of the global losses. An unlabelled task is left out, its ``s_t`` included (its gradient is 0).

    Args:
        num_tasks: T; None where :meth:`setup` tells it later.
    """

    facts = Facts(
        paper='Liu et al., Towards Impartial Multi-Task Learning, ICLR 2021, loss balance',
        rule=r'$\sum_t e^{s_t} L_t - s_t$, $s$ learned',
        convention="s is learned by the run's optimizer at `weighting_lr` (the authors published no code)",
        unlabelled='left out, its s too (gradient 0)',
        step='that of `ew` at the start',
        state="s (T), and the optimizer's for it",
    )

    sized_by = 'log_scale_T'

    def forward(self, losses_T: Tensor, labelled_T: Tensor | None = None, advance: bool = True) -> Tensor:
        """Returns ``sum_t exp(s_t) L_t - s_t`` over the labelled tasks.

        Raises:
            ValueError: If a loss is not positive.
        """
        check_positive(self, losses_T, labelled_mask(losses_T, labelled_T))
        return super().forward(losses_T, labelled_T, advance)

    def terms(self, losses_T: Tensor, learned_T: Tensor) -> Tensor:
        """Returns ``exp(s_t) L_t - s_t``, (T,)."""
        return torch.exp(learned_T) * losses_T - learned_T
