"""The inputs of RepMTL: the tensors that each loss is differentiated by, and the facts about all processes.

Dimensions: T tasks.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from mmrepmtl.methods.collectives import Ranks
from mmrepmtl.methods.saliency import Representation, sources_of_tasks


def find_sources(
    losses: Mapping[str, Tensor],
    representation: Representation,
    slices: Mapping[str, slice] | None,
    shared_samples: bool | None,
) -> dict[str, list[Tensor]]:
    """{task: tensors of Z, one per level, that its loss is differentiated by}.

    Raises:
        ValueError: If ``shared_samples`` contradicts the form of the representation.
    """
    per_task = isinstance(representation, Mapping)
    if shared_samples and (per_task or slices is not None):
        raise ValueError('RepMTL: a representation per task, or slices of it, needs shared_samples=False')
    own = shared_samples is False
    if (own or per_task) and per_task == (slices is not None):
        raise ValueError(
            'RepMTL: shared_samples=False needs the representation as {task: tensor}, or as one '
            "tensor with the context's slices = {task: its rows}, and not both"
        )
    return sources_of_tasks(losses, representation)


def count_samples(
    losses: Mapping[str, Tensor], sources: Mapping[str, list[Tensor]], slices: Mapping[str, slice] | None
) -> int:
    """The samples of this process, those that all tasks have where they have their own."""
    if slices is None:
        return min(len(source[0]) for source in sources.values())
    return min(len(range(*slices[task].indices(len(sources[task][0])))) for task in losses)


def exchange(
    losses: Mapping[str, Tensor],
    sources: Mapping[str, list[Tensor]],
    ranks: Ranks,
    length: int,
    layout: str,
    transform: str | None,
) -> tuple[dict[str, float | Tensor], list[int]]:
    """The factor of each loss in the saliency, and the number of samples of each rank.

    Args:
        losses: Those that are labelled.
        sources: As :func:`find_sources` gives them.
        ranks: The processes.
        length: Samples of this process.
        layout: That of Z.
        transform: ``'log'`` or None.

    Raises:
        ValueError: On all ranks, for a mean loss <= 0 under ``'log'`` and for levels or channels that differ.
    """
    values_T = torch.stack(
        [loss.detach() if loss.dtype == torch.float64 else loss.detach().float() for loss in losses.values()]
    )
    shapes = [level.shape for level in next(iter(sources.values()))]
    channels = [shape[1] if layout == 'NCHW' else shape[-1] for shape in shapes]
    # One number for all channels, so that ranks with different numbers of levels reduce the same shape.
    same = {
        'RepMTL: the number of levels of Z': len(channels),
        'RepMTL: the sum of (number of the level, from 1) times channels of Z': sum(
            (i + 1) * c for i, c in enumerate(channels)
        ),
    }
    total_T, sizes = ranks.sum_and_sizes(values_T, length, same)
    if transform is None:
        return dict.fromkeys(losses, 1.0), sizes
    mean_T = total_T / ranks.size
    # On the reduced values, so that all ranks stop together.
    refused = {task: value for task, value in zip(losses, mean_T.tolist(), strict=True) if value <= 0}
    if refused:
        raise ValueError(
            f"RepMTL: saliency_transform='log' needs positive losses, got {refused}; use "
            'saliency_transform=None or a loss that is positive'
        )
    return dict(zip(losses, 1 / mean_T, strict=True)), sizes
