import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from .history import LazyWeighting, labelled_mask


class UncertaintyWeighting(LazyWeighting):
    """Homoscedastic-uncertainty weighting (UW): each loss divided by a learned variance.

    Source: Kendall, Gal and Cipolla, CVPR 2018, Eq. 5-10, with ``s = log sigma^2`` and the regression form
    ``1/(2 sigma^2)`` for every task, as LibMTL and the Rep-MTL paper's baselines use it: the scalar is
    ``sum_t L_t / (2 exp(s_t)) + s_t / 2``. An unlabelled task is left out, its ``s_t`` included (its gradient is 0).
    Losses may be 0 or negative; the variance of a task whose loss stays so falls without end.

    Args:
        num_tasks: T; None where :meth:`setup` tells it later.
    """

    loss_transform = 'own'
    sized_by = 'log_variance_T'

    def __init__(self, num_tasks: int | None = None) -> None:
        super().__init__()
        self.log_variance_T = UninitializedParameter()
        if num_tasks is not None:
            self.setup(num_tasks)

    def setup(self, num_tasks: int) -> None:
        """Materialises the T log variances at 0. Idempotent."""
        if isinstance(self.log_variance_T, UninitializedParameter):
            self.log_variance_T.materialize((num_tasks,))
            nn.init.zeros_(self.log_variance_T)

    def forward(self, losses_T: Tensor, labelled_T: Tensor | None = None, advance: bool = True) -> Tensor:
        """Returns ``sum_t L_t / (2 exp(s_t)) + s_t / 2`` over the labelled tasks."""
        del advance
        self.setup(len(losses_T))
        mask_T = labelled_mask(losses_T, labelled_T)
        terms_T = losses_T * torch.exp(-self.log_variance_T) / 2 + self.log_variance_T / 2
        return terms_T[mask_T].sum()
