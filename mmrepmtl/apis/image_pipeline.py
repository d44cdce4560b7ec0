"""From a picture of any size to the network's input, as the config's test pipeline makes it, without targets."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from mmengine.config import Config
from torch import Tensor

from mmrepmtl.apis.splits import picture_dataset
from mmrepmtl.datasets.base import build_transform, isolated_rng
from mmrepmtl.datasets.transforms import functional as F
from mmrepmtl.datasets.transforms.formatting import PackMultiTaskInputs
from mmrepmtl.datasets.transforms.geometric import PadMultiTask, RandomFlip, RandomZoom, ResizeMultiTask
from mmrepmtl.structures import MultiTaskDataSample


class Prepared(NamedTuple):
    """``inputs`` (3, h, w) in [0, 1], its data sample, and ``content``, the (h, w) at the top left without padding."""

    inputs: Tensor
    data_sample: MultiTaskDataSample
    content: tuple[int, int]


class ImagePipeline:
    """Runs the transforms of the config's test data set on a picture, and remembers what of the result is picture.

    A config without a test is served by its validation data set.

    The size is, in this order: ``size``; that of the pipeline's ``ResizeMultiTask``; the ``size`` of the data set, for
    one that makes its pictures itself; else the picture's own. Resizing stretches: the aspect ratio is not kept, as in
    training.

    Args:
        cfg: The config.
        size: (height, width) in pixels of the network's input, instead of what the config says.

    Raises:
        ValueError: A random transform among those of the test data set, several domains with different pipelines, no
            ``PackMultiTaskInputs`` at the end; on a picture: a transform other than ``ResizeMultiTask`` and
            ``PadMultiTask`` that changes its size, which could not be undone.
    """

    def __init__(self, cfg: Config, size: Sequence[int] | None = None) -> None:
        dataset = _innermost(picture_dataset(cfg, 'prediction on pictures'))
        self.transforms = [build_transform(transform) for transform in _transforms(dataset)]
        for transform in self.transforms:
            if isinstance(transform, RandomFlip | RandomZoom):
                raise ValueError(
                    f'the test pipeline of the config holds {type(transform).__name__}, which is random; leave it out'
                )
        if not self.transforms or not isinstance(self.transforms[-1], PackMultiTaskInputs):
            raise ValueError('the test pipeline of the config must end with PackMultiTaskInputs')
        if size is not None:
            self.transforms = [t for t in self.transforms if not isinstance(t, ResizeMultiTask)]
        resizes = any(isinstance(transform, ResizeMultiTask) for transform in self.transforms)
        #: (height, width) that pictures are brought to before the transforms, or None.
        self.size: tuple[int, int] | None = None
        if size is not None or (not resizes and dataset.get('size') is not None):
            self.size = ResizeMultiTask(size or dataset['size']).size
        #: Whether each picture is taken at its own size.
        self.keeps_size = self.size is None and not resizes

    def __call__(self, img: np.ndarray, path: str = '') -> Prepared:
        """Prepares a picture (H, W, 3) float32 RGB in [0, 1]; ``path`` names it in errors."""
        if self.size is not None and img.shape[:2] != self.size:
            shrinks = self.size[0] <= img.shape[0] and self.size[1] <= img.shape[1]
            img = F.resize_image(img, self.size, 'area' if shrinks else 'bilinear')
        results: dict[str, Any] = dict(
            img=img, gt={}, targets={}, sample_idx=0, img_path=path, ori_shape=img.shape[:2], img_shape=img.shape[:2]
        )
        content = img.shape[:2]
        # As in a data set in test mode: what a transform of another project draws is the same each time.
        with isolated_rng(0, 0, 0):
            for transform in self.transforms:
                before = content if isinstance(transform, PackMultiTaskInputs) else results['img'].shape[:2]
                results = transform(results)
                if isinstance(transform, PackMultiTaskInputs):
                    break
                content = _content(transform, content, before, results['img'].shape[:2])
        return Prepared(results['inputs'], results['data_samples'], content)


def _content(
    transform: Any, content: tuple[int, int], before: tuple[int, int], after: tuple[int, int]
) -> tuple[int, int]:
    """Finds the part of a transformed picture that is no padding, from that part before the transform."""
    if after == before or isinstance(transform, PadMultiTask):
        return content
    if isinstance(transform, ResizeMultiTask) and content == before:
        return after
    raise ValueError(
        f'the test pipeline changes a picture of {before} to {after} by {type(transform).__name__} (content '
        f'{content}), which cannot be undone; use ResizeMultiTask, then PadMultiTask'
    )


def _innermost(dataset: Mapping[str, Any]) -> Mapping[str, Any]:
    while dataset.get('dataset'):  # wrappers such as RepeatDataset
        dataset = dataset['dataset']
    return dataset


def _transforms(dataset: Mapping[str, Any]) -> list:
    """The configs of the transforms that a sample goes through, those of its domain first."""
    parts = dataset.get('datasets') or {}
    parts = list(parts.values()) if isinstance(parts, Mapping) else list(parts)
    pipelines = [list(part.get('pipeline') or []) for part in parts]
    if any(pipeline != pipelines[0] for pipeline in pipelines):
        raise ValueError(
            'the domains of the test data set have different pipelines, so it is not clear which one is meant; give '
            'all of them one'
        )
    return [*(pipelines[0] if pipelines else []), *(dataset.get('pipeline') or [])]
