"""STCH. Dimensions: T tasks."""

import torch
from torch import Tensor

from mmrepmtl.methods.facts import Facts
from mmrepmtl.methods.positive import check_positive

from .history import EpochWeighting, labelled_mask


class STCH(EpochWeighting):
    """Smooth Tchebycheff scalarisation (STCH): a smooth maximum of the losses, each in units of its nadir.

    Source: Lin et al., "Smooth Tchebycheff Scalarization for Multi-Objective Optimization", ICML 2024:
    ``mu log sum_t exp(lambda_t (f_t - z_t) / mu)``. In its multi-task experiments (the authors' public code)
    ``f_t = log(L_t / n_t)``, ``lambda_t = 1``, ``z_t = 0``, and the result is multiplied by T, so that its gradient has
    the scale of the sum of log losses:

        T mu log sum_t (L_t / n_t)^(1 / mu),         weight of task t:  (T / L_t) softmax_t(log(L_t / n_t) / mu).

    The nadir n_t is the mean loss over the epoch that follows ``warmup_epochs`` epochs; until its end the sum of log
    losses is minimised. As the public code does it; its reported weights (1) are not those it applies, its epsilons
    (1e-20) are not needed here. For mu -> 0 it is T times the largest ``log(L_t / n_t)``.

    Accumulation: each micro-batch has the smooth maximum of its own losses; the nadir is a mean over steps. DDP: of the
    global losses. An unlabelled task is left out, and T is the number of labelled ones. The nadir of a task without a
    label in the epoch that measures it is its mean over the first later epoch in which it has one; until then its log
    loss is added as in the warm-up, and T counts the tasks in the maximum.

    Args:
        mu: Smoothness of the maximum.
        warmup_epochs: Number of epochs before the one that measures the nadir.
        interval: Number of optimizer steps that count as an epoch; None: the trainer's epochs.

    Raises:
        ValueError: If ``mu`` is not positive, ``warmup_epochs`` is negative or ``interval`` is less than 1.
    """

    facts = Facts(
        paper='Lin et al., Smooth Tchebycheff Scalarization, ICML 2024',
        rule=(
            r'$T \mu \log \sum_t (L_t / n_t)^{1/\mu}$, $n$ the mean losses of the epoch after the warm-up; '
            r'before: $\sum_t \log L_t$'
        ),
        convention=(
            'as the public code, times T for the scale of `ew-log`; the reported weights are those applied (there: 1)'
        ),
        unlabelled='left out; T counts the others; without a nadir its log loss is added',
        step='in units of log losses',
        state='n (T), sums of the epoch',
        equal_parts=False,
        accumulation='nadirs of mean losses',
    )

    loss_transform = 'own'
    nadir_T: Tensor

    def __init__(self, mu: float = 1.0, warmup_epochs: int = 4, interval: int | None = None) -> None:
        if not mu > 0:
            raise ValueError(f'STCH: mu must be positive, got {mu!r}')
        if warmup_epochs < 0:
            raise ValueError(f'STCH: warmup_epochs must not be negative, got {warmup_epochs!r}')
        super().__init__(interval, nadir_T=torch.nan)
        self.mu, self.warmup_epochs = mu, warmup_epochs

    def forward(self, losses_T: Tensor, labelled_T: Tensor | None = None, advance: bool = True) -> Tensor:
        """Returns the smooth maximum, and before the nadir is known the sum of log losses.

        Raises:
            ValueError: If a loss is not positive.
        """
        self.setup(len(losses_T))
        mask_T = labelled_mask(losses_T, labelled_T)
        check_positive(self, losses_T, mask_T)
        known_T = mask_T & ~self.nadir_T.isnan()
        scalar = losses_T[mask_T & ~known_T].double().log().sum()
        if known_T.any():
            gaps = losses_T[known_T].double().log() - self.nadir_T[known_T].log()
            scalar = scalar + len(gaps) * self.mu * torch.logsumexp(gaps / self.mu, 0)
        self.record(losses_T, mask_T, advance)
        return scalar.to(losses_T.dtype)

    def close_epoch(self, means_T: Tensor, seen_T: Tensor) -> None:
        """Takes the nadir of each task once, after the warm-up."""
        if self.epoch_count >= self.warmup_epochs:
            self.nadir_T = torch.where(self.nadir_T.isnan() & seen_T, means_T, self.nadir_T)
