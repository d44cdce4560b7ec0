"""SDMGrad.

Dimensions: T tasks, S the subset of them that has a gradient, P elements of the shared parameters, C columns of one
piece of them.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mmrepmtl.methods.facts import Facts

from .base import Aggregator
from .solvers import project_on_simplex
from .state import COLUMNS, row_norms, weighted_sum


class SDMGrad(Aggregator):
    """SDMGrad: direction-oriented MGDA, its weights from gradients of batches that are independent of the step's.

    The step is ``sum_t (w_t + lambda / T) g_t / (1 + lambda)``, g_t the gradients of the third batch. The weights w on
    the simplex descend ``|sum_t w_t g_t + lambda g_0|^2 / 2``, g_0 the mean, by stochastic gradients that are unbiased
    since the two factors of each product come from two other batches: ``n_iter`` steps of SGD with momentum from the
    last weights, each projected back. Source: Xiao, Ban and Ji, "Direction-oriented Multi-objective Learning: Simple
    and Provable Stochastic Algorithms", NeurIPS 2023, Algorithm 1 and section 6.1. One step needs three batches, and
    their gradients: three times the memory and the work. Gradients of one batch, (T, P), may be given for all three
    roles; the products are then biased by the noise of the batch, and that is what the paper's code computes, since its
    three buffers are one.

    The products are divided by the squared mean over tasks of ``sqrt(|g_t| |g_t'|)``, so that ``lr`` has no unit. For
    one batch that is the paper's code; for independent ones the code takes the root of ``<g_t, g_t'>``, which can be
    negative. Scale: times T, "to match the sum loss" (paper's code; LibMTL and ``torchjd`` leave it out); clipping is
    left to the trainer. Heads are unweighted.

    Steps are of at most 1 over the largest singular value of the products, unlike the paper's code: that value is at
    least 1 where the batches are one, and with momentum 0.5 steps of lr are stable below 3 over it only. At lr = 10 the
    weights jump between the vertices of the simplex: of 5 tasks with uncorrelated gradients
    ``|sum_t w_t g_t + lambda g_0|^2`` is larger than with equal weights, and rounding decides which task leads, so that
    one process and two take steps that differ by 100 %. Bounded steps reach the minimum, and both agree to 1e-6.

    A task needs gradients in both of the first batches for its weight to move, else it keeps it; the step is over the
    tasks with a gradient in the third batch, with w scaled to sum 1 over them and T their number. One such task has
    weight 1. At parameter level only: Z is another one for each batch. Combined once per accumulation window.

    Args:
        level: The place of the gradients, as in :class:`Aggregator`.
        weight_heads: As in :class:`Aggregator`.
        lambda_: Weight of the mean gradient's direction; 0.3 in the paper's experiments.
        n_iter: SGD steps for the weights (20 in the paper's code).
        lr: Upper bound of their learning rate (10 in the paper's code, 5 in LibMTL, there without the other bound).
        momentum: Their momentum (0.5 in the paper's code).

    Raises:
        ValueError: For settings out of range, or gradients of another number of batches.
    """

    facts = Facts(
        paper='Xiao et al., NeurIPS 2023, Algorithm 1, section 6.1',
        rule=(
            r'$\min_w \lVert \sum_t w_t g_t + \lambda g_0 \rVert$ over the simplex by SGD with two batches; '
            'the step with the third'
        ),
        convention=(
            "three independent batches (paper; in its code the three buffers are one); products over the gradients' "
            "norms, so that lr has no unit; the weights' steps are lr 10 (paper's code) or 1 over the products' "
            'spectral norm, whichever is smaller: steps of 10 jump between the vertices of the simplex, and rounding '
            'chooses among them (5 tasks: one process and two differ by 100 %, with these bounds by 1e-7); times T '
            "(paper's code; LibMTL and torchjd: not); clipping is the trainer's"
        ),
        unlabelled=(
            'its w moves only with gradients in both of the first batches; the step is over the tasks in the third, w '
            'scaled to sum to 1'
        ),
        step='that of `ew`',
        state='w (T)',
        heads='of all three batches',
        accumulation=(
            '`accumulative_counts` is a multiple of 3, and batch i takes the micro-batches i, i + 3, ...; a last '
            'window that is too short repeats the first'
        ),
    )

    levels = ('parameter',)
    num_batches = 3
    simplex_T: Tensor | None

    def __init__(
        self,
        level: Literal['parameter'] = 'parameter',
        weight_heads: bool | None = None,
        lambda_: float = 0.3,
        n_iter: int = 20,
        lr: float = 10.0,
        momentum: float = 0.5,
    ) -> None:
        super().__init__(level, weight_heads)
        if lambda_ < 0 or n_iter < 0 or lr < 0 or not 0 <= momentum < 1:
            raise ValueError(
                'SDMGrad: lambda_, n_iter and lr must not be negative and momentum must be in [0, 1), got '
                f'lambda_={lambda_}, n_iter={n_iter}, lr={lr}, momentum={momentum}'
            )
        self.lambda_, self.n_iter, self.lr, self.momentum = lambda_, n_iter, lr, momentum
        self.register_buffer('simplex_T', None)

    def setup(self, num_tasks: int, sizes: Sequence[int] | None = None) -> None:
        """Makes the weights on the simplex, at first 1 / T."""
        if self.simplex_T is None:
            self.simplex_T = torch.full((num_tasks,), 1 / num_tasks, dtype=torch.float64)

    def forward(self, gradients: Tensor, losses_T: Tensor) -> tuple[Tensor, Tensor]:
        """Combines the gradients.

        Args:
            gradients: Gradients of three independent batches, (3, T, P), or of one for all roles, (T, P).
            losses_T: Not read.

        Returns:
            The combined gradient (P,) of the third batch, and the weights (T,).
        """
        if gradients.dim() == 3 and len(gradients) != 3:
            raise ValueError(f'SDMGrad: needs the gradients of three batches (3, T, P), got {tuple(gradients.shape)}')
        first, second, last = gradients if gradients.dim() == 3 else [gradients] * 3
        self.setup(len(last))
        assert self.simplex_T is not None
        weights_T = self.simplex_T.cpu().clone()
        norms_2T = torch.stack([row_norms(first), row_norms(second)]).cpu()
        learning_T = (norms_2T > 0).all(0)
        if learning_T.sum() > 1:
            scales_S = norms_2T[:, learning_T].prod(0).sqrt()
            products_SS = _products(first, second).cpu()[learning_T][:, learning_T] / scales_S.mean() ** 2
            weights_T[learning_T] = self._descend(weights_T[learning_T], products_SS)
            self.simplex_T.copy_(weights_T)
        present_T = (row_norms(last) > 0).cpu()
        applied_T = torch.where(present_T, weights_T, 0)
        if present_T.any():
            count = int(present_T.sum())
            uniform_T = present_T.to(weights_T) / count
            applied_T = applied_T / applied_T.sum() if applied_T.sum() > 0 else uniform_T
            applied_T = count * (applied_T + self.lambda_ * uniform_T) / (1 + self.lambda_)
        applied_T = applied_T.to(last.device)
        return weighted_sum(applied_T, last), applied_T.to(last)

    def _descend(self, weights_S: Tensor, products_SS: Tensor) -> Tensor:
        """Projected SGD from the last weights (S,); their sum, which other tasks' weights complete to 1, is kept."""
        total = weights_S.sum()
        if total == 0:
            return weights_S
        weights_S, velocity_S = weights_S / total, torch.zeros_like(weights_S)
        lr = (1 / torch.linalg.matrix_norm(products_SS, ord=2)).clamp(max=self.lr)
        for _ in range(self.n_iter):
            gradient_S = products_SS @ (weights_S + self.lambda_ / len(weights_S))
            velocity_S = self.momentum * velocity_S + gradient_S
            weights_S = project_on_simplex(weights_S - lr * velocity_S)
        return weights_S * total


def _products(first_TP: Tensor, second_TP: Tensor) -> Tensor:
    """Inner products (T, T) in float64, in pieces as the Gramian's."""
    pairs = zip(first_TP.split(COLUMNS, dim=1), second_TP.split(COLUMNS, dim=1), strict=True)
    total_TT = first_TP.new_zeros(len(first_TP), len(second_TP), dtype=torch.float64)
    for first_TC, second_TC in pairs:
        total_TT += first_TC.double() @ second_TC.double().T
    return total_TT
