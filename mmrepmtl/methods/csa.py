"""Cross-task saliency alignment (Rep-MTL, Eq. 7-9) in its exact low-rank form.

Dimensions: T tasks, B samples of this process, G samples of all processes, C channels, N positions, K columns of
a matrix.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from mmrepmtl.methods.collectives import Ranks, full_precision

#: Elements of one chunk's temporaries: large maps go one by one, small ones in batches that keep the device busy.
_CHUNK_ELEMENTS = 2**22
#: Saliency below this fraction of the batch's mean magnitude is rounding noise.
_RELATIVE_ZERO = {torch.float32: 1e-6, torch.float64: 1e-14}


class Alignment(NamedTuple):
    """The loss, and the mean cosine similarities of its positive and negative pairs; all scalars."""

    loss: Tensor
    positive: Tensor
    negative: Tensor


def cross_task_saliency_alignment(
    saliency: Tensor, temperature: float = 1.0, gather_negatives: bool = False, *, process_group: Any = None
) -> Tensor:
    """CSA: contrasts each sample's anchor with its tasks' affinities (positives) and with the other samples' anchors.

    Equal to the literal formula on C x C affinities, value and gradient. The pairs of a (relatively) zero saliency are
    left out of the mean; with fewer than two samples that have an anchor there are no negatives and the loss is 0. It
    can be differentiated once.

    Args:
        saliency: (T, B, C), (T, B, C, N) or (T, B, C, H, W).
        temperature: Divisor of the similarities, > 0.
        gather_negatives: Contrast with the samples of all processes. The value is then the one of the concatenated
            batch on every rank, and the *mean over ranks* of the gradients is its gradient. All ranks must call it,
            with equal T and C; B and N may differ.
        process_group: The processes to gather from; ``None`` is the default group.

    Returns:
        A scalar; negative when positives are more alike than negatives.
    """
    ranks = Ranks(process_group, gather_negatives)
    saliency_TBCN = as_positions(saliency)
    with full_precision(saliency.device.type):
        _, sizes = ranks.sum_and_sizes(saliency_TBCN.new_zeros(0), saliency_TBCN.shape[1])
        return align(saliency_TBCN, temperature, ranks, sizes).loss


def as_positions(saliency: Tensor) -> Tensor:
    """Brings a saliency to (T, B, C, N), in float32 or float64."""
    if not 3 <= saliency.dim() <= 5:
        raise ValueError(
            f'expected a saliency (T, B, C), (T, B, C, N) or (T, B, C, H, W), got shape {tuple(saliency.shape)}'
        )
    saliency = saliency if saliency.dtype == torch.float64 else saliency.float()
    return saliency.unsqueeze(-1) if saliency.dim() == 3 else saliency.flatten(3)


def align(saliency_TBCN: Tensor, temperature: float, ranks: Ranks, sizes: list[int]) -> Alignment:
    """:func:`cross_task_saliency_alignment` over the samples of ``ranks``, each of which holds ``sizes[rank]``."""
    T, B, C, _ = saliency_TBCN.shape
    # The largest magnitude, without a copy; dividing by it keeps fourth powers of a float32 in range.
    scale_TB = torch.linalg.vector_norm(saliency_TBCN.detach(), ord=math.inf, dim=(2, 3))
    scale_TB = torch.where(scale_TB > 0, scale_TB, 1)
    anchor_BCT, projection_TB, square_TB, rms_TB = _Moments.apply(saliency_TBCN, scale_TB)
    anchor_scale_B = scale_TB.amax(0)
    norm_B = torch.linalg.vector_norm(anchor_BCT.detach(), dim=(1, 2))
    anchor_rms_BT = anchor_BCT.detach().square().mean(1).sqrt() * anchor_scale_B[:, None]
    # Both cosines are invariant to the length of the anchor, so that it may be divided by as a constant.
    norm_B = torch.where(norm_B > 0, norm_B, 1)
    anchor_BCT = anchor_BCT / norm_B[:, None, None]
    projection_TB = projection_TB / norm_B.square()
    own_norm_B = _positive(_Gram.apply(anchor_BCT).square().sum((1, 2))).sqrt()
    positive_TB = projection_TB / (own_norm_B * _positive(square_TB).sqrt())

    rows = torch.cat([anchor_BCT.flatten(1), positive_TB.T, rms_TB.T, anchor_rms_BT], dim=1)
    rows = ranks.gather_rows(rows, sizes)
    anchor_GCT = rows[:, : C * T].unflatten(1, (C, T))
    positive_GT, rms_GT, anchor_rms_GT = rows[:, C * T :].split(T, dim=1)
    # The own part stays in the graph. The others' parts are constants here, and in the graph of their own rank.
    start = sum(sizes[: ranks.rank])
    anchor_GCT = torch.cat([anchor_GCT[:start], anchor_BCT, anchor_GCT[start + B :]])
    positive_GT = torch.cat([positive_GT[:start], positive_TB.T, positive_GT[start + B :]])
    result = _contrast(anchor_GCT, positive_GT, rms_GT, anchor_rms_GT, temperature)
    # DistributedDataParallel takes the mean over ranks of gradients that add up to the whole.
    loss = result.loss.detach() + ranks.size * (result.loss - result.loss.detach())
    return result._replace(loss=loss)


def _contrast(
    anchor_GCT: Tensor, positive_GT: Tensor, rms_GT: Tensor, anchor_rms_GT: Tensor, temperature: float
) -> Alignment:
    """Eq. 9 from the anchors, the positive similarities and the magnitudes of all samples."""
    G, C, T = anchor_GCT.shape
    threshold_T = _RELATIVE_ZERO[rms_GT.dtype] * rms_GT.mean(0)
    has_anchor_G = (anchor_rms_GT > threshold_T).any(1)
    has_anchor_G = has_anchor_G & (has_anchor_G.sum() > 1)
    paired_GT = (rms_GT > threshold_T) & has_anchor_G[:, None]
    contrasted_GG = has_anchor_G[:, None] & has_anchor_G & ~torch.eye(G, dtype=torch.bool, device=rms_GT.device)

    products = _Gram.apply(anchor_GCT.transpose(0, 1).reshape(1, C, G * T)).reshape(G, T, G, T)
    affinity_GG = products.square().sum((1, 3))
    norm_G = _positive(affinity_GG.diagonal()).sqrt()
    negative_GG = affinity_GG / (norm_G[:, None] * norm_G)
    # A finite filler: rows without any negative would otherwise have NaN gradients before they are masked.
    logits_GG = (negative_GG / temperature).masked_fill(~contrasted_GG, torch.finfo(rms_GT.dtype).min / 2)
    pairs_GT = logits_GG.logsumexp(1)[:, None] - positive_GT / temperature
    pairs = paired_GT.sum().clamp(min=1)
    loss = torch.where(paired_GT, pairs_GT, 0).sum() / pairs
    positive = torch.where(paired_GT, positive_GT.detach(), 0).sum() / pairs
    negative = torch.where(contrasted_GG, negative_GG.detach(), 0).sum() / contrasted_GG.sum().clamp(min=1)
    return Alignment(loss, positive, negative)


def _positive(values: Tensor) -> Tensor:
    """``values`` with 1 where they are 0: a divisor whose square root has a finite gradient."""
    return torch.where(values > 0, values, 1)


class _Gram(torch.autograd.Function):
    """A^T A of each matrix (B, C, K) in full precision, in the backward too."""

    @staticmethod
    def forward(ctx: FunctionCtx, matrix_BCK: Tensor) -> Tensor:
        ctx.save_for_backward(matrix_BCK)
        with full_precision(matrix_BCK.device.type):
            return matrix_BCK.mT @ matrix_BCK

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BKK: Tensor) -> Tensor:
        (matrix_BCK,) = ctx.saved_tensors
        with full_precision(matrix_BCK.device.type):
            gradient_BCK: Tensor = matrix_BCK @ (gradient_BKK + gradient_BKK.mT)
        return gradient_BCK


class _Moments(torch.autograd.Function):
    """All that CSA reads from a saliency, streamed over samples so that only the gradient is as large as the saliency.

    With X = saliency[t, b] / scale[t, b], and A[b] the mean of saliency over positions / max_t scale[t, b], C x T:

    * anchor_BCT: A
    * projection_TB: ||A^T X||_F^2 = <A A^T, X X^T>
    * square_TB: ||X^T X||_F^2 = ||X X^T||_F^2 over the smaller of the two, recomputed in the backward
    * rms_TB: root mean square of saliency[t, b]; no gradient
    """

    @staticmethod
    def forward(ctx: FunctionCtx, saliency_TBCN: Tensor, scale_TB: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Computes the products of the class docstring, one small Gramian at a time."""
        C, N = saliency_TBCN.shape[2:]
        anchor_BCT = saliency_TBCN.mean(3).permute(1, 2, 0) / scale_TB.amax(0)[:, None, None]
        projection_TB, square_TB, rms_TB = (torch.empty_like(scale_TB) for _ in range(3))
        with full_precision(saliency_TBCN.device.type):
            for t, chunk in _chunks(saliency_TBCN):
                x_BCN = saliency_TBCN[t, chunk] / scale_TB[t, chunk, None, None]
                gram = _small_gram(x_BCN)
                projection_TB[t, chunk] = (anchor_BCT[chunk].mT @ x_BCN).square().sum((1, 2))
                rms_TB[t, chunk] = (gram.diagonal(dim1=1, dim2=2).sum(1) / (C * N)).sqrt() * scale_TB[t, chunk]
                square_TB[t, chunk] = gram.square_().sum((1, 2))
        ctx.save_for_backward(saliency_TBCN, scale_TB, anchor_BCT)
        ctx.mark_non_differentiable(rms_TB)
        return anchor_BCT, projection_TB, square_TB, rms_TB

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, anchor_grad_BCT: Tensor, projection_grad_TB: Tensor, square_grad_TB: Tensor, _: Tensor
    ) -> tuple[Tensor, None]:
        """The gradient of the saliency; the Gramians are computed again rather than kept."""
        saliency_TBCN, scale_TB, anchor_BCT = ctx.saved_tensors
        N = saliency_TBCN.shape[3]
        gradient_TBCN = torch.empty_like(saliency_TBCN)
        anchor_grad_BCT = anchor_grad_BCT.clone()
        with full_precision(saliency_TBCN.device.type):
            for t, chunk in _chunks(saliency_TBCN):
                scale = scale_TB[t, chunk, None, None]
                projection_grad, square_grad = (
                    2 * projection_grad_TB[t, chunk, None, None],
                    4 * square_grad_TB[t, chunk, None, None],
                )
                x_BCN = saliency_TBCN[t, chunk] / scale
                # Scalars go into the small factors of each product.
                projected_BTN = projection_grad * (anchor_BCT[chunk].mT @ x_BCN)
                anchor_grad_BCT[chunk] += x_BCN @ projected_BTN.mT
                gram = _small_gram(x_BCN).mul_(square_grad / scale)
                out_BCN = gradient_TBCN[t, chunk]
                torch.bmm(*((x_BCN, gram) if len(gram[0]) == N else (gram, x_BCN)), out=out_BCN)
                out_BCN.baddbmm_(anchor_BCT[chunk], projected_BTN / scale)
        anchor_grad_BCT /= scale_TB.amax(0)[:, None, None] * N
        gradient_TBCN += anchor_grad_BCT.permute(2, 0, 1)[..., None]
        return gradient_TBCN, None


def _small_gram(x_BCN: Tensor) -> Tensor:
    """X^T X or X X^T, whichever is smaller (X^T X of a square)."""
    return x_BCN.mT @ x_BCN if x_BCN.shape[2] <= x_BCN.shape[1] else x_BCN @ x_BCN.mT


def _chunks(saliency_TBCN: Tensor) -> Iterator[tuple[int, slice]]:
    """(task, samples) of the pieces that are worked on at once."""
    T, B, C, N = saliency_TBCN.shape
    step = max(1, _CHUNK_ELEMENTS // (C * N + min(C, N) ** 2))
    for t in range(T):
        for start in range(0, B, step):
            yield t, slice(start, start + step)
