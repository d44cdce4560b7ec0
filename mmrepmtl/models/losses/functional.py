"""Losses as sums: each function returns its numerator and its denominator.

A mean over valid pixels has a different denominator on each rank, so that the mean of rank means is not the global
mean. Sums and counts add up; the model divides once, after the counts have been added over the ranks.

All functions are twice differentiable in the prediction and have a zero that is connected to the graph as numerator
where nothing is valid.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

#: Elementwise penalties of a residual, by name.
PENALTIES = {
    'l1': torch.abs,
    'mse': torch.square,
    'smooth_l1': lambda residual: F.smooth_l1_loss(residual, torch.zeros_like(residual), reduction='none'),
}


def cross_entropy_terms(
    logits: Tensor, target: Tensor, ignore_index: int, class_weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy summed over the labelled positions.

    Args:
        logits: (B, K, ...) unnormalised scores.
        target: (B, ...) int64 class ids; positions of ``ignore_index`` are left out.
        ignore_index: The void label.
        class_weight: (K,) factor per class, or None.

    Returns:
        The sum of the (weighted) cross-entropies in nats and the number of labelled positions (the sum of their
        weights), both scalars.
    """
    labelled = target != ignore_index
    numerator = F.cross_entropy(logits, target, weight=class_weight, ignore_index=ignore_index, reduction='sum')
    if class_weight is None:
        return numerator, labelled.sum()
    return numerator, torch.where(labelled, class_weight[torch.where(labelled, target, 0)], 0).sum()


def binary_terms(
    logits: Tensor, target: Tensor, ignore_index: int, positive_weight: float | str | None = None
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy summed over the labelled positions, positives and negatives weighted by w and 1 - w.

    Args:
        logits: (B, ...) unnormalised scores of 1.
        target: (B, ...) int64, 0 or 1; positions of ``ignore_index`` are left out.
        ignore_index: The void label.
        positive_weight: w in (0, 1); ``'balanced'``: the share of negatives among each image's labelled positions, as
            in HED (Xie and Tu, ICCV 2015, eq. 2; public multi-task code takes the share of the batch, which depends on
            how it is spread over processes); None: no weights, both 1.

    Returns:
        The sum of the weighted cross-entropies in nats and the number of labelled positions (not weighted).
    """
    labelled, positive = target != ignore_index, target == 1
    weight: float | Tensor
    other: float | Tensor
    if positive_weight is None:
        weight, other = 1.0, 1.0
    elif positive_weight == 'balanced':
        axes = tuple(range(1, target.ndim))
        share = positive.sum(axes, keepdim=True) / labelled.sum(axes, keepdim=True).clamp(min=1).to(logits.dtype)
        weight, other = 1 - share, share
    else:
        weight, other = float(positive_weight), 1 - float(positive_weight)
    losses = -torch.where(positive, weight * F.logsigmoid(logits), other * F.logsigmoid(-logits))
    return torch.where(labelled, losses, 0).sum(), labelled.sum()


def regression_terms(prediction: Tensor, target: Tensor, valid: Tensor, penalty: str = 'l1') -> tuple[Tensor, Tensor]:
    """A penalty of ``prediction - target`` summed over the valid elements.

    Args:
        prediction: Any shape.
        target: The same shape; may hold NaN or infinity where it is not valid.
        valid: The same shape, bool.
        penalty: ``'l1'``, ``'mse'`` (the square, no factor 1/2) or ``'smooth_l1'`` (beta 1).

    Returns:
        The sum (unit of the target, or its square) and the number of valid elements, both scalars.
    """
    residual = torch.where(valid, prediction - target, 0)
    return PENALTIES[penalty](residual).sum(), valid.sum()


def check_penalty(owner: str, penalty: str) -> str:
    """Returns ``penalty``; a name that is unknown stops with those that are known."""
    if penalty not in PENALTIES:
        raise ValueError(f'{owner}: loss={penalty!r} is unknown; use one of {sorted(PENALTIES)}')
    return penalty


def angular_terms(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """``1 - cos`` of the angle between two vector fields, summed over the valid positions.

    Args:
        prediction: (B, 3, ...), of any length.
        target: (B, 3, ...) unit vectors; the zero vector is invalid.

    Returns:
        The sum and the number of valid positions, both scalars.
    """
    valid = (target != 0).any(dim=1)
    cosine = (unit_vectors(prediction) * target).sum(dim=1)
    return torch.where(valid, 1 - cosine, 0).sum(), valid.sum()


def unit_vectors(vectors: Tensor, epsilon: float = 1e-8) -> Tensor:
    """Divides the vectors along dimension 1 by their length.

    Vectors shorter than ``epsilon`` become zero with zero gradient: the derivatives of the length do not exist at
    zero, and those of :func:`torch.nn.functional.normalize` are NaN in second order there.

    Args:
        vectors: (B, C, ...).
    """
    squared = vectors.square().sum(dim=1, keepdim=True)
    usable = squared > epsilon**2
    # The inner `where` keeps rsqrt away from zero: a NaN behind the outer one would still reach the gradient.
    return vectors * torch.where(usable, torch.where(usable, squared, 1).rsqrt(), 0)
