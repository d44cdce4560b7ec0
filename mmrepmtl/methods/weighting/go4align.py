"""GO4Align. Dimensions: T tasks, N sorted numbers."""

import torch
from torch import Tensor

from mmrepmtl.methods.facts import Facts
from mmrepmtl.methods.positive import check_positive

from .history import HistoryWeighting, labelled_mask, weighted_sum


class GO4Align(HistoryWeighting):
    """GO4Align, adaptive group risk minimisation: tasks with similar risk indicators share one weight.

    Source: Shen et al., "GO4Align: Group Optimization for Multi-Task Alignment", NeurIPS 2024, and the authors'
    public code. In each step

        p_t <- p_t exp(-beta L_t / u) / Z        (from p = 1/T: the risks of all steps so far),
        gamma_t = p_t sum_k L_k / L_t            (the risk-guided indicator: puts the losses on one scale),
        groups = k-means of the T numbers gamma, the weight of a task = the mean gamma of its group.

    Choices:

    * The losses in the exponent are in units of ``u``, the mean loss over the tasks in the first step, so that a common
      factor of all losses changes nothing. The public code has u = 1 (``loss_unit=1.0``): nearly the same for losses
      near 1, but at losses of 1e6 one step takes a task's whole weight.
    * k-means is solved exactly, by dynamic programming over the sorted indicators; the public code starts Lloyd's
      algorithm at random points and may stop in a local optimum.
    * p is kept as a logarithm, so that it cannot underflow. The weights can, as in the paper: that of a task whose loss
      lies G units above another's falls by ``exp(-beta G)`` per step against that one's. Over more than about 80 /
      (beta G) steps lower beta.

    Accumulation: within a window p is that of the steps before and of the micro-batch; after it, of the steps with the
    mean over the window. DDP: of the global losses. An unlabelled task is left out: sums, groups and Z are over the
    labelled ones, which share among them what they had of p before, and its own p stays.

    Args:
        num_groups: K; fewer where fewer tasks are labelled. The paper takes 2 for NYUv2 and 5 for the 11 tasks of QM9.
        beta: Step size of the risk update.
        loss_unit: u; None: the mean loss of the first step.

    Raises:
        ValueError: If ``num_groups`` is less than 1, ``beta`` is negative or ``loss_unit`` is not positive.
    """

    facts = Facts(
        paper='Shen et al., NeurIPS 2024',
        rule=(
            r'$w_t$ is the mean over the group of $t$ of $p_t \sum_k L_k / L_t$; $p_t \leftarrow p_t '
            r'\exp(-\beta L_t / u) / Z$; groups by k-means'
        ),
        convention=(
            "exponents in units of the first step's mean loss (public code: 1, here `loss_unit=1.0`); exact k-means, "
            "there Lloyd's from random points"
        ),
        unlabelled='left out; the others share what they had of p, its own stays',
        step='that of `ew`',
        state='log p (T), u',
        equal_parts=False,
        accumulation='p moves by mean losses',
    )

    loss_transform = 'own'
    log_share_T: Tensor
    unit: Tensor

    def __init__(self, num_groups: int = 2, beta: float = 1e-4, loss_unit: float | None = None) -> None:
        if num_groups < 1:
            raise ValueError(f'GO4Align: num_groups must be at least 1, got {num_groups!r}')
        if not beta >= 0:
            raise ValueError(f'GO4Align: beta must not be negative, got {beta!r}')
        if loss_unit is not None and not loss_unit > 0:
            raise ValueError(f'GO4Align: loss_unit must be positive or None, got {loss_unit!r}')
        super().__init__(log_share_T=0.0)
        self.num_groups, self.beta = num_groups, beta
        unit = torch.nan if loss_unit is None else loss_unit
        self.register_buffer('unit', torch.tensor(unit, dtype=torch.float64))

    def forward(self, losses_T: Tensor, labelled_T: Tensor | None = None, advance: bool = True) -> Tensor:
        """Returns ``sum_t w_t L_t`` with the weights of the groups.

        Raises:
            ValueError: If a loss is not positive.
        """
        self.setup(len(losses_T))
        mask_T = labelled_mask(losses_T, labelled_T)
        check_positive(self, losses_T, mask_T)
        weights_T = torch.zeros_like(self.log_share_T)
        if mask_T.any():
            losses = losses_T.detach()[mask_T].double()
            share = self._log_share(losses, mask_T).softmax(0)
            indicators = share * losses.sum() / losses
            groups = kmeans_groups(indicators.cpu(), self.num_groups).to(indicators.device)
            weights_T[mask_T] = group_means(indicators, groups)
        self.record(losses_T, mask_T, advance)
        return weighted_sum(losses_T, weights_T)

    def _log_share(self, losses: Tensor, mask_T: Tensor) -> Tensor:
        """Log p of the tasks in the mask after a step with these losses of theirs, up to a constant."""
        unit = torch.where(self.unit.isnan(), losses.mean(), self.unit)
        return self.log_share_T[mask_T] - self.beta * losses / unit

    def close_step(self, means_T: Tensor, seen_T: Tensor) -> None:
        """Updates p by the step's mean losses."""
        if not seen_T.any():
            return
        losses = means_T[seen_T]
        shared = self.log_share_T[seen_T].logsumexp(0)
        log_share_T = self.log_share_T.clone()
        log_share_T[seen_T] = self._log_share(losses, seen_T).log_softmax(0) + shared
        self.log_share_T = log_share_T
        self.unit = torch.where(self.unit.isnan(), losses.mean(), self.unit)


def group_means(values_N: Tensor, groups_N: Tensor) -> Tensor:
    """Replaces each value by the mean of its group.

    Args:
        values_N: (N,).
        groups_N: Index of each value's group, (N,).
    """
    same_NN = (groups_N[:, None] == groups_N).to(values_N)
    means_N: Tensor = same_NN @ values_N / same_NN.sum(1)
    return means_N


def kmeans_groups(values_N: Tensor, num_groups: int) -> Tensor:
    """The groups of an optimal k-means clustering of numbers, by dynamic programming.

    The groups of an optimum are intervals of the sorted numbers, so that the cost of the best split of the first j of
    them into g groups follows from those into g - 1.

    Args:
        values_N: (N,), N at least 1.
        num_groups: k; no more than N are made.

    Returns:
        The index of each number's group, (N,); 0 has the smallest numbers.
    """
    sorted_N, order_N = values_N.sort()
    count = len(sorted_N)
    index_N = torch.arange(count)
    inside_NNN = (index_N[:, None, None] <= index_N) & (index_N <= index_N[:, None])  # [i, j]: the numbers i..j
    mean_NN = (inside_NNN * sorted_N).sum(2) / inside_NNN.sum(2).clamp(min=1)
    spread_NN = (inside_NNN * (sorted_N - mean_NN[..., None]) ** 2).sum(2)
    spread_NN[index_N[:, None] > index_N] = torch.inf
    cost_N, starts = spread_NN[0], []
    for _ in range(1, min(num_groups, count)):
        cost_N, last_N = (cost_N[:-1, None] + spread_NN[1:]).min(0)
        starts.append(last_N + 1)
    groups_N, end = torch.zeros(count, dtype=torch.long), count
    for group in range(len(starts), 0, -1):
        start = int(starts[group - 1][end - 1])
        groups_N[start:end] = group
        end = start
    result_N = torch.empty_like(groups_N)
    result_N[order_N] = groups_N
    return result_N
