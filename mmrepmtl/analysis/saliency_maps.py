"""Saliency maps: each task's saliency, which task owns each position, and the similarities that CSA contrasts.

Dimensions: T tasks, B samples, C channels, N = H x W positions of the shared representation Z.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from torch import Tensor, nn

from mmrepmtl.analysis.forward import shared_forward
from mmrepmtl.engine.task_losses import TaskLosses
from mmrepmtl.methods.collectives import Ranks
from mmrepmtl.methods.csa import as_positions
from mmrepmtl.methods.rep_mtl import RepMTL
from mmrepmtl.methods.saliency import task_saliency
from mmrepmtl.methods.tsr import ownership
from mmrepmtl.registry import REGULARIZERS
from mmrepmtl.structures import KINDS, KindTable, MultiTaskDataSample
from mmrepmtl.utils.config_types import is_type


class SaliencySettings(NamedTuple):
    """The place of Z and the way to read it; see :class:`~mmrepmtl.methods.rep_mtl.RepMTL`."""

    shared: str
    transform: str | None = 'log'
    layout: str = 'NCHW'
    num_prefix_tokens: int = 0

    @classmethod
    def of(cls, cfg: Config) -> 'SaliencySettings':
        """Those of a config: its optim wrapper's ``shared``, and what its ``RepMTL``, if it has one, is told of Z."""
        wrapper = cfg.get('optim_wrapper') or {}
        if 'shared' not in wrapper:
            raise ValueError(
                'saliency: the config has no optim_wrapper.shared, which names the module whose output is Z'
            )
        configs = [r for r in wrapper.get('regularizers') or [] if isinstance(r, Mapping)]
        rep_mtl = next((r for r in configs if is_type(r['type'], REGULARIZERS, RepMTL)), {})
        return cls(
            wrapper['shared'],
            rep_mtl.get('saliency_transform', 'log'),
            rep_mtl.get('layout', 'NCHW'),
            rep_mtl.get('num_prefix_tokens', 0),
        )


class SaliencyMaps(NamedTuple):
    """The result of :func:`saliency_maps` for one level of Z; float64 on the CPU.

    Attributes:
        tasks: Their names.
        magnitude_TBHW: |s_t|, the magnitude of the channel mean of the task's saliency (Rep-MTL, Eq. 4).
        ownership_TBHW: P_t, the task's share of that magnitude (Eq. 5); 0 where no task has any.
        anchor_BB: Cosine of the samples' anchors (the negative pairs of Eq. 9); NaN for a sample without saliency.
        affinity_BT: Cosine of a sample's anchor and each task's affinity (the positive pairs); NaN without saliency.
        entropy: TSR (Eq. 6) over ln T: 0 if each position has one owner, 1 if all tasks share all alike.
        share_T: Mean ownership of each task.
        losses: {task: loss of the batch}.
        input_size: (H, W) of the network's input, padding included, which the maps cover.
    """

    tasks: tuple[str, ...]
    magnitude_TBHW: Tensor
    ownership_TBHW: Tensor
    anchor_BB: Tensor
    affinity_BT: Tensor
    entropy: float
    share_T: Tensor
    losses: dict[str, float]
    input_size: tuple[int, int]


def saliency_maps(
    model: nn.Module,
    inputs: Sequence[Tensor],
    data_samples: Sequence[MultiTaskDataSample],
    settings: SaliencySettings,
) -> list[SaliencyMaps]:
    """Computes the saliency of each task on a batch, in evaluation mode (BatchNorm with its running statistics).

    Training computes it in training mode, so its penalty sees the batch's statistics instead.

    Args:
        model: One that ``MultiTaskOptimWrapper`` could train and that names its ``tasks``.
        inputs: The images, (3, h, w) in [0, 1].
        data_samples: With the targets; a task without its target on a sample has no saliency there.
        settings: The place of Z and the way to read it.

    Returns:
        One for each level of Z.

    Raises:
        ValueError: Tasks with samples of their own, a loss that is not positive under the log, an unknown ``shared``,
            or a Z without positions.
    """
    if getattr(model, 'encoder_forward', 'shared') != 'shared':
        raise ValueError(
            f'saliency maps compare the tasks on the same images, but encoder_forward={model.encoder_forward!r}: each '
            'task has samples of its own'
        )
    losses, capture, size = shared_forward(model, inputs, data_samples, settings.shared)
    named = _transformed(losses, settings.transform)
    views = capture.levels(list(losses.losses))
    found = task_saliency(named, views, layout=settings.layout, num_prefix_tokens=settings.num_prefix_tokens)
    levels = [level.detach().cpu().double() for level in ([found] if isinstance(found, Tensor) else found)]
    values = dict(zip(losses.losses, losses.losses_T.tolist(), strict=True))
    return [_maps(level, values, size) for level in levels]


def _transformed(losses: TaskLosses, transform: str | None) -> dict[str, Tensor]:
    """Losses whose gradient is the saliency: under the log that of the loss times the constant 1 / loss."""
    if transform is None:
        return losses.losses
    named = {}
    for (task, loss), labelled in zip(losses.losses.items(), losses.labelled_T.tolist(), strict=True):
        if labelled and not loss.detach() > 0:
            raise ValueError(
                f'the loss of task {task!r} is {float(loss.detach()):g}, and the saliency of a log loss needs a '
                'positive one; use saliency_transform=None or other images'
            )
        named[task] = loss / loss.detach() if labelled else loss
    return named


def _maps(saliency: Tensor, losses: dict[str, float], input_size: tuple[int, int]) -> SaliencyMaps:
    """The maps of one level (T, B, C, *spatial)."""
    if saliency.dim() == 3:
        raise ValueError('Z is one vector per image here, without positions: its saliency cannot be drawn as a map')
    if saliency.dim() == 4:
        saliency = saliency.unflatten(3, token_grid(saliency.shape[3], input_size))
    magnitude_TBHW = saliency.mean(2).abs()
    total_BHW = magnitude_TBHW.sum(0)
    saliency_TBCN = as_positions(saliency)
    anchor_BB, affinity_BT = similarities(saliency_TBCN)
    owned = ownership(saliency_TBCN, 0.0, Ranks(enabled=False))
    return SaliencyMaps(
        tuple(losses),
        magnitude_TBHW,
        magnitude_TBHW / torch.where(total_BHW > 0, total_BHW, 1),
        anchor_BB,
        affinity_BT,
        float(owned.loss) / math.log(max(len(losses), 2)),
        owned.share_T,
        losses,
        input_size,
    )


def similarities(saliency_TBCN: Tensor) -> tuple[Tensor, Tensor]:
    """The cosines that CSA contrasts (Rep-MTL, Eq. 7-9), from their exact low-rank form.

    Args:
        saliency_TBCN: The saliency, float64 (fourth powers of it are taken).

    Returns:
        anchors by anchors (B, B) and anchors by affinities of the same sample (B, T); NaN where one of the two is 0.
    """
    anchor_BCT = saliency_TBCN.mean(3).permute(1, 2, 0)
    product_BB = torch.einsum('bct,kcs->bkts', anchor_BCT, anchor_BCT).square().sum((2, 3))
    norm_B = product_BB.diagonal().sqrt()
    projection_TB = torch.einsum('bcs,tbcn->tbsn', anchor_BCT, saliency_TBCN).square().sum((2, 3))
    channels, positions = saliency_TBCN.shape[2:]
    tall = saliency_TBCN if channels >= positions else saliency_TBCN.mT
    affinity_norm_TB = torch.linalg.matrix_norm(tall.mT @ tall)
    return product_BB / (norm_B[:, None] * norm_B), (projection_TB / (norm_B * affinity_norm_TB)).T


def token_grid(count: int, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of ``count`` tokens of square patches that cover an image of ``size`` (H, W).

    Raises:
        ValueError: No such grid.
    """
    height, width = size
    for rows in range(1, count + 1):
        if count % rows == 0 and rows * width == count // rows * height:
            return rows, count // rows
    raise ValueError(f'{count} tokens are no grid of square patches of an image of {height} x {width}')


@torch.no_grad()
def mirrored_targets(
    model: Any, inputs: Sequence[Tensor], targets_meta: Mapping[str, Mapping[str, Any]]
) -> list[MultiTaskDataSample]:
    """Stand-ins for the truth: what the model predicts on the mirrored images, mirrored back.

    The prediction on the image itself would not do: a regression has no error against itself, and so no saliency.

    Args:
        model: A ``MultiTaskModel``.
        inputs: The images, (3, h, w) in [0, 1].
        targets_meta: Declarations of the targets.
    """
    model.eval()
    flipped = [image.flip(-1) for image in inputs]
    samples = [MultiTaskDataSample(metainfo=dict(img_shape=tuple(image.shape[1:]))) for image in inputs]
    predicted = model.test_step(dict(inputs=flipped, data_samples=samples))
    results = []
    for sample, prediction in zip(samples, predicted, strict=True):
        result = MultiTaskDataSample(metainfo=sample.metainfo)
        for task, value in prediction.predictions.items():
            target = model.heads[task].target_name
            result.set_target(target, _mirrored(value, targets_meta[target]['kind']))
        results.append(result)
    return results


def _mirrored(prediction: Tensor, kind: str) -> Tensor:
    """A prediction on a mirrored image as the target of the image."""
    facts = KINDS[kind]
    if facts.dense:
        prediction = prediction.flip(-1)
    if facts.directions:
        prediction = prediction * prediction.new_tensor([-1, 1, 1])[:, None, None]
    return AS_TARGET[kind](prediction)


def _as_it_is(prediction: Tensor) -> Tensor:
    return prediction


#: Functions of a prediction that return the target for which it would be right.
AS_TARGET: KindTable[Callable[[Tensor], Tensor]] = KindTable(
    'mmrepmtl.analysis.saliency_maps.AS_TARGET',
    dict(
        segmentation=_as_it_is,
        binary=lambda prediction: (prediction > 0.5).long(),
        depth=_as_it_is,
        normals=_as_it_is,
        classification=lambda prediction: prediction.argmax(),
        regression=_as_it_is,
    ),
)
