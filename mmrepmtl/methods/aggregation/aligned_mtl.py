"""Aligned-MTL. Dimensions: S the subset of the tasks that has a gradient, R principal components."""

from typing import Literal

import torch
from torch import Tensor

from mmrepmtl.methods.facts import Facts

from .base import GramianAggregator
from .solvers import ROUNDING, cosines_and_norms


class AlignedMTL(GramianAggregator):
    """Aligned-MTL: the gradients made orthogonal and of equal norm (condition number 1), as near as possible.

    With the eigenvalues L and vectors V of the Gramian the weights are ``sqrt(s) V L^(-1/2) V^T 1``, where s is the
    smallest (``'min'``), median or mean (``'rmse'``) eigenvalue that is not zero. Source: Senushkin et al.,
    "Independent Component Alignment for Multi-Task Learning", CVPR 2023, Algorithm 1.

    Scale: the aligned gradients are summed, as in the paper's code (``torchjd`` averages them). Heads are unweighted
    (``scale_decoder_grad=False`` in the paper's code). The unit gradients tell which ones are linearly dependent:
    eigenvalues of their cosines below 1e-12 of the largest count as zero (an angle below 2e-6 as none), whatever the
    norms. The paper's code cuts the Gramian's at T times the float32 rounding (4e-7 for three tasks), which removes a
    task whose gradient is 2000 times smaller than another, and ``torchjd`` at T times the float64 rounding, which takes
    the rounding of dependent gradients for a smallest eigenvalue and nearly stops training. L and V come from a
    singular value decomposition of what is left; a component below its rounding (tasks 1e15 apart) is left out.

    Tasks without a gradient are left out. Combined once per accumulation window at parameter level, per micro-batch
    at representation level (the paper's Aligned-MTL-UB).

    Args:
        level: The place of the gradients, as in :class:`Aggregator`.
        weight_heads: As in :class:`Aggregator`.
        scale_mode: The common norm: that of the smallest (``'min'``, paper), median or root mean square
            principal component.

    Raises:
        ValueError: For an unknown ``scale_mode``.
    """

    facts = Facts(
        paper='Senushkin et al., CVPR 2023, Algorithm 1',
        rule=(
            r'$w = \sqrt{s} V \Lambda^{-1/2} V^{\top} 1$, $G = V \Lambda V^{\top}$, $s$ the smallest '
            'eigenvalue: principal components at one length'
        ),
        convention=(
            "the sum (paper's code; torchjd: mean); dependent gradients are found by their cosines, whose eigenvalues "
            "below 1e-12 of the largest count as 0 (paper's code: those of the Gramian below T times float32's "
            'rounding, which removes a task whose gradient is 2000 times smaller)'
        ),
        unlabelled='no part of the problem',
        step='that of `ew`',
        heads="as the paper's code by default",
    )

    def __init__(
        self,
        level: Literal['parameter', 'representation'] = 'parameter',
        weight_heads: bool | None = None,
        scale_mode: Literal['min', 'median', 'rmse'] = 'min',
    ) -> None:
        super().__init__(level, weight_heads)
        if scale_mode not in ('min', 'median', 'rmse'):
            raise ValueError(f"AlignedMTL: scale_mode must be 'min', 'median' or 'rmse', got {scale_mode!r}")
        self.scale_mode = scale_mode

    def solve(self, gramian_SS: Tensor, losses_S: Tensor) -> Tensor:
        """Returns the weights (S,), which may be negative."""
        cosines_SS, norms_S = cosines_and_norms(gramian_SS)
        values_S, vectors_SS = torch.linalg.eigh(cosines_SS)
        kept_S = values_S > ROUNDING * values_S.max()
        # Rows with the inner products of the gradients, but not squared: tasks far apart keep their angles.
        rows_SR = (norms_S / norms_S.max())[:, None] * vectors_SS[:, kept_S] * values_S[kept_S].sqrt()
        left_SR, lengths_R, _ = torch.linalg.svd(rows_SR, full_matrices=False)
        resolved_R = lengths_R > len(norms_S) * torch.finfo(lengths_R.dtype).eps * lengths_R.max()
        left_SR, lengths_R = left_SR[:, resolved_R], lengths_R[resolved_R]
        scale = {
            'min': lengths_R.min(),
            'median': lengths_R.median(),
            'rmse': lengths_R.square().mean().sqrt(),
        }[self.scale_mode]
        weights_S: Tensor = left_SR @ (scale / lengths_R * left_SR.sum(0))
        return weights_S
