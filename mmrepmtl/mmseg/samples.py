"""Between mmseg's data samples and ours: names of fields, paddings, flips."""

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor

from mmrepmtl.models.heads import DenseHead
from mmrepmtl.structures import KINDS, KindTable, MultiTaskDataSample

#: Name of the field of the first task of a kind in a SegDataSample; None: that of the task. In the order of drawing.
FIELDS: KindTable[str | None] = KindTable(
    'mmrepmtl.mmseg.samples.FIELDS',
    dict(segmentation='sem_seg', depth='depth_map', normals='normal_map', binary=None),
    dense=True,
)


def fields_of(heads: Mapping[str, DenseHead]) -> dict[str, str]:
    """{task: FIELD}: its prediction is ``pred_FIELD`` and its truth ``gt_FIELD`` in a SegDataSample.

    The first task of a kind has mmseg's name, ``sem_seg`` or ``depth_map`` (and ``normal_map``), others their own.

    Raises:
        ValueError: A head is of a kind that is not in ``FIELDS``, so that a SegDataSample could not hold its values.
    """
    fields: dict[str, str] = {}
    for task, head in heads.items():
        field = FIELDS[kind_of(task, head)] or task
        fields[task] = task if field in fields.values() else field
    return fields


def kind_of(task: str, head: DenseHead) -> str:
    """The kind of a head's target, one of ``FIELDS``.

    Raises:
        ValueError: It is of another kind.
    """
    if head.kind is None or head.kind not in FIELDS:
        raise ValueError(
            f'MultiTaskSegmentor: task {task!r} ({type(head).__name__}) has no map that mmseg could show; leave it '
            'to MultiTaskModel'
        )
    return head.kind


def to_multi_task(
    sample: SegDataSample, heads: Mapping[str, DenseHead], fields: Mapping[str, str], size: Sequence[int]
) -> MultiTaskDataSample:
    """The truth of an mmseg sample as targets, padded as void to the network's input, ``size`` = (H, W).

    mmseg pads depth maps with its label of void pixels, 255, which would be a valid depth: what lies outside
    ``img_shape`` is replaced.
    """
    converted = MultiTaskDataSample(metainfo=sample.metainfo)
    height, width = sample.metainfo.get('img_shape', size)[:2]
    for task, field in fields.items():
        truth = sample.get(f'gt_{field}')
        if truth is None:
            continue
        target = truth.data[..., :height, :width]
        kind = KINDS[kind_of(task, heads[task])]
        target = F.pad(target, (0, size[1] - target.shape[-1], 0, size[0] - target.shape[-2]), value=kind.void)
        converted.set_target(heads[task].target_name, target if len(kind.tensor) == 3 else target[0])
    return converted


def mirror(maps: Tensor, direction: str | None, kind: str) -> Tensor:
    """Flips maps (B, C, H, W) with their values; normals have axes (right, into the scene, up).

    Args:
        maps: Raw outputs or predictions.
        direction: ``'horizontal'`` or ``'vertical'``, as mmcv's RandomFlip writes it.
        kind: That of the target.

    Raises:
        ValueError: Another direction.
    """
    if direction not in ('horizontal', 'vertical'):
        raise ValueError(f"MultiTaskSegmentor: flip_direction={direction!r}; it can undo 'horizontal' and 'vertical'")
    axis, component = (3, 0) if direction == 'horizontal' else (2, 2)
    maps = maps.flip(dims=(axis,))
    if KINDS[kind].directions:
        maps[:, component] = -maps[:, component]
    return maps


def as_pixel_data(prediction: Tensor, kind: str) -> PixelData:
    """A prediction (H, W) or (C, H, W) as mmseg stores it, (C, H, W), with its kind."""
    data = prediction[None] if prediction.ndim == 2 else prediction
    return PixelData(metainfo=dict(kind=kind), data=data)
