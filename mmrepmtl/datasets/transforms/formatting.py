from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from torch import Tensor

from mmrepmtl.registry import TRANSFORMS
from mmrepmtl.structures import KINDS, MultiTaskDataSample


@TRANSFORMS.register_module()
class PackMultiTaskInputs(BaseTransform):
    """Ends a pipeline: makes tensors of the image and the targets.

    Returns ``dict(inputs, data_samples)``: ``inputs`` (3, H, W) float32 RGB, ``data_samples`` a ``MultiTaskDataSample``
    with the targets in the formats of its table; a target that is missing stays missing (unlabelled).

    Args:
        meta_keys (Sequence[str]): Entries of the results to keep as meta information, where present.

    Raises:
        ValueError: When an image is not (H, W, 3) floating point.
    """

    def __init__(self, meta_keys: Sequence[str] = ('sample_idx', 'img_path', 'ori_shape', 'img_shape')) -> None:
        self.meta_keys = tuple(meta_keys)

    def transform(self, results: dict) -> dict:
        """Packs ``results`` into ``dict(inputs, data_samples)``."""
        img = results['img']
        if img.ndim != 3 or img.shape[2] != 3 or not np.issubdtype(img.dtype, np.floating):
            raise ValueError(
                f'{results.get("img_path")}: PackMultiTaskInputs found an image {img.shape} {img.dtype}, '
                'expected (H, W, 3) float in [0, 1]'
            )
        sample = MultiTaskDataSample(metainfo={key: results[key] for key in self.meta_keys if key in results})
        for name, value in results['gt'].items():
            sample.set_target(name, to_target_tensor(value, results['targets'][name]['kind']))
        return dict(inputs=_channels_first(img), data_samples=sample)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(meta_keys={self.meta_keys})'


def to_target_tensor(value: Any, kind: str) -> Tensor:
    """A loaded target as the tensor that ``MultiTaskDataSample`` holds for its kind."""
    facts = KINDS[kind]
    array = np.asarray(value)
    if facts.dense and len(facts.array) == 3:
        array = array.transpose(2, 0, 1)
    elif facts.dense and len(facts.tensor) == 3:
        array = array[None]
    # Not ascontiguousarray, which makes one number a vector.
    return torch.from_numpy(np.require(array, facts.dtype, 'C'))


def _channels_first(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1), dtype=np.float32))
