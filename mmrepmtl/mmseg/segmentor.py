from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.models.segmentors import BaseSegmentor, EncoderDecoder
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from mmrepmtl.models import DenseHead, MultiTaskDataPreprocessor, MultiTaskModel
from mmrepmtl.models.heads.dense import resize
from mmrepmtl.registry import MODELS
from mmrepmtl.visualization import default_palette

from .samples import as_pixel_data, fields_of, kind_of, mirror, to_multi_task


# In mmengine's own registry: configs whose default scope is mmseg find it by its plain name.
@MMENGINE_MODELS.register_module()
class MultiTaskSegmentor(MultiTaskModel, BaseSegmentor):
    """A :class:`MultiTaskModel` with the interface of mmseg's segmentors: the same config, the same weights.

    mmseg's pipelines, inferencer, visualiser, test-time augmentation and sliding windows work on all dense tasks. In a
    SegDataSample the truth of a task is ``gt_FIELD`` and its prediction ``pred_FIELD``, with FIELD ``sem_seg``,
    ``depth_map`` or ``normal_map`` for the first segmentation, depth and normals, and the task's name for others;
    ``seg_logits`` belongs to ``sem_seg``. Predictions have the image's original size.

    The raw outputs of all tasks lie behind each other in the channels of what :meth:`encode_decode` returns, so that
    overlapping windows are averaged as mmseg averages logits: before the arg max, and before normals are normalised.

    Args:
        encoder, heads, neck, init_cfg, encoder_forward: See :class:`MultiTaskModel`; all heads must be dense. Types
            without a scope are looked up in mmrepmtl, whatever the default scope.
        data_preprocessor: A ``SegDataPreProcessor``, or that of the multi-task model, which is translated: mmseg's
            pipelines give BGR images in [0, 255], ours RGB in [0, 1].
        train_cfg: Not used; mmseg's tools set it.
        test_cfg: ``dict(mode='whole')`` or ``dict(mode='slide', crop_size=(h, w), stride=(h, w))``.
        pretrained: Not used but for None, which mmseg's tools set.
        classes: Names of the classes for pictures; None: those in the checkpoint, or "class 0", "class 1", ...
        palette: One RGB colour for each class; None: that of the checkpoint, or a generated one.

    Raises:
        ValueError: A head is not dense, ``classes`` or ``palette`` do not fit the number of classes.
    """

    heads: Mapping[str, DenseHead]

    # mmseg's own; what they call is below.
    inference = EncoderDecoder.inference
    slide_inference = EncoderDecoder.slide_inference
    whole_inference = EncoderDecoder.whole_inference

    def __init__(
        self,
        encoder: Mapping[str, Any] | nn.Module,
        heads: Mapping[str, Mapping[str, Any] | nn.Module],
        neck: Mapping[str, Any] | nn.Module | None = None,
        data_preprocessor: Mapping[str, Any] | nn.Module | None = None,
        train_cfg: Mapping[str, Any] | None = None,
        test_cfg: Mapping[str, Any] | None = None,
        pretrained: str | None = None,
        init_cfg: dict | list | None = None,
        encoder_forward: str = 'shared',
        classes: Sequence[str] | None = None,
        palette: Sequence[Sequence[int]] | None = None,
    ) -> None:
        if pretrained is not None:
            raise ValueError(
                f'MultiTaskSegmentor: pretrained={pretrained!r}; weights are named in the config of the encoder'
            )
        with DefaultScope.overwrite_default_scope('mmrepmtl'):
            preprocessor = _preprocessor(data_preprocessor)
            super().__init__(encoder, heads, neck, preprocessor, init_cfg, encoder_forward)
        self.fields = fields_of(self.heads)
        self._channels = {task: _channels_of(task, head) for task, head in self.heads.items()}
        self.out_channels = sum(self._channels.values())
        self.align_corners = True
        self.train_cfg = train_cfg
        self.test_cfg = ConfigDict(dict(mode='whole') | dict(test_cfg or {}))
        segmentations = [task for task, field in self.fields.items() if field == 'sem_seg']
        #: The task whose prediction is ``pred_sem_seg``, or None.
        self.segmentation: str | None = segmentations[0] if segmentations else None
        self.num_classes = 0 if self.segmentation is None else self._channels[self.segmentation]
        self._dataset_meta = _class_meta(classes, palette, self.num_classes)

    # ---- what mmseg asks of a segmentor ----

    @property
    def decode_head(self) -> DenseHead | None:
        """The head of ``pred_sem_seg``."""
        return None if self.segmentation is None else self.heads[self.segmentation]

    @property
    def dataset_meta(self) -> dict[str, Any]:
        """``classes`` and ``palette`` of ``pred_sem_seg`` for mmseg's visualiser.

        mmseg sets it from the checkpoint, and takes Cityscapes' classes if a checkpoint names none. Neither these nor
        classes of another number are taken over.
        """
        return self._dataset_meta

    @dataset_meta.setter
    def dataset_meta(self, meta: Mapping[str, Any] | None) -> None:
        meta = meta or {}
        if self.segmentation is not None:
            meta = meta.get('targets', {}).get(self.heads[self.segmentation].target, meta) or {}
        classes = meta.get('classes')
        if classes is not None and len(classes) == self.num_classes:
            self._dataset_meta = _class_meta(classes, meta.get('palette'), self.num_classes)

    def extract_feat(self, inputs: Tensor) -> Tensor | tuple[Tensor, ...] | dict[str, Any]:
        """The shared representation of the images (B, 3, H, W)."""
        return self.represent(inputs)

    def encode_decode(self, inputs: Tensor, batch_img_metas: Sequence[Mapping[str, Any]]) -> Tensor:
        """The raw outputs of all tasks, behind each other: (B, ``out_channels``, H, W)."""
        return torch.cat(list(self.raw_outputs(inputs).values()), dim=1)

    def _forward(self, inputs: Tensor, data_samples: Sequence[SegDataSample] | None = None) -> dict[str, Tensor]:
        """{task: raw output}."""
        return self.raw_outputs(inputs)

    def loss(self, inputs: Tensor, data_samples: Sequence[SegDataSample] | None) -> dict[str, Tensor]:
        """The losses of :meth:`MultiTaskModel.loss`, of mmseg's data samples; a truth that is absent is unlabelled."""
        size = (inputs.shape[-2], inputs.shape[-1])
        if data_samples is None:
            raise ValueError("MultiTaskSegmentor: mode='loss' needs data_samples")
        samples = [to_multi_task(sample, self.heads, self.fields, size) for sample in _checked(data_samples)]
        return super().loss(inputs, samples)

    def predict(self, inputs: Tensor, data_samples: Sequence[SegDataSample] | None = None) -> list[SegDataSample]:
        """Predicts all tasks, by ``test_cfg`` from the whole image or from windows; fills in ``data_samples``."""
        size = (inputs.shape[-2], inputs.shape[-1])
        if data_samples is None:
            whole = dict(ori_shape=size, img_shape=size, pad_shape=size, padding_size=[0] * 4)
            data_samples = [SegDataSample(metainfo=whole) for _ in inputs]
        metas = [sample.metainfo for sample in _checked(data_samples)]
        return self.postprocess_result(self.inference(inputs, metas), data_samples)

    def postprocess_result(self, outputs: Tensor, data_samples: Sequence[SegDataSample]) -> list[SegDataSample]:
        """Raw outputs (B, ``out_channels``, H, W) as predictions: padding and flips undone, at the original size."""
        parts = dict(zip(self.heads, outputs.split(list(self._channels.values()), dim=1), strict=True))
        for row, sample in enumerate(data_samples):
            for task, head in self.heads.items():
                kind = kind_of(task, head)
                maps = _as_in_file(parts[task][row : row + 1], sample.metainfo, kind)
                prediction = as_pixel_data(head.prediction(maps)[0], kind)
                sample.set_data({f'pred_{self.fields[task]}': prediction})
                if task == self.segmentation:
                    sample.set_data(dict(seg_logits=as_pixel_data(maps[0], 'logits')))
        return list(data_samples)


def _as_in_file(maps: Tensor, meta: Mapping[str, Any], kind: str) -> Tensor:
    """Raw outputs (1, C, H, W) without padding, turned as the image in its file, and of its size."""
    left, right, top, bottom = meta.get('img_padding_size', meta.get('padding_size', [0] * 4))
    height, width = maps.shape[-2:]
    maps = maps[:, :, top : height - bottom, left : width - right]
    if meta.get('flip'):
        maps = mirror(maps, meta.get('flip_direction'), kind)
    return resize(maps, meta['ori_shape'][:2]) if 'ori_shape' in meta else maps


def _checked(data_samples: Sequence[SegDataSample]) -> Sequence[SegDataSample]:
    for sample in data_samples:
        if not isinstance(sample, SegDataSample):
            raise ValueError(
                f'MultiTaskSegmentor reads the SegDataSample of mmseg (PackSegInputs), not {type(sample).__name__}; '
                'with the pipelines of mmrepmtl use MultiTaskModel'
            )
    return data_samples


def _preprocessor(config: Mapping[str, Any] | nn.Module | None) -> nn.Module:
    """mmseg's preprocessor that gives the network what ours would."""
    config = config or dict(type='MultiTaskDataPreprocessor')
    built = config if isinstance(config, nn.Module) else MODELS.build(config)
    if not isinstance(built, MultiTaskDataPreprocessor):
        return built
    mean, std = [0.0] * 3, [1.0] * 3
    if built.normalises:
        mean, std = built.mean.flatten().tolist(), built.std.flatten().tolist()
    divisor = built.size_divisor
    return SegDataPreProcessor(
        mean=[255 * value for value in mean] * (3 // len(mean)),
        std=[255 * value for value in std] * (3 // len(std)),
        bgr_to_rgb=True,
        size_divisor=divisor,
        test_cfg=dict(size_divisor=divisor) if divisor > 1 else None,
    )


def _channels_of(task: str, head: DenseHead) -> int:
    """Channels of a head's raw output."""
    channels = getattr(head.decoder, 'out_channels', None)
    if channels is None:
        raise ValueError(
            f'MultiTaskSegmentor: the decoder of task {task!r} ({type(head.decoder).__name__}) has no attribute '
            '`out_channels`'
        )
    return channels


def _class_meta(
    classes: Sequence[str] | None, palette: Sequence[Sequence[int]] | None, num_classes: int
) -> dict[str, Any]:
    classes = list(classes) if classes is not None else [f'class {index}' for index in range(num_classes)]
    palette = [list(colour) for colour in palette] if palette else default_palette(num_classes)
    if len(classes) != num_classes or len(palette) != num_classes:
        raise ValueError(
            f'MultiTaskSegmentor: {len(classes)} classes and {len(palette)} colours for a task of {num_classes} classes'
        )
    return dict(classes=classes, palette=palette)
