"""Samples as the files of an archive: resized, in its formats, written whole or not at all."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mmrepmtl.datasets.checks import check_image, check_target
from mmrepmtl.datasets.transforms import ResizeMultiTask
from mmrepmtl.structures.kinds import VOID, KindTable
from mmrepmtl.utils.files import whole_file


def save_array(path: Path, array: np.ndarray) -> None:
    """Writes ``array`` whole or not at all.

    To a .npy file any array; to a .png file (H, W) or RGB (H, W, 3) uint8; to any other (N,) uint8, the bytes of a file
    that is copied.
    """
    with whole_file(path) as file:
        if path.suffix == '.npy':
            np.save(file, array)
        elif path.suffix != '.png':
            file.write(array.tobytes())
        else:
            encoded = cv2.imencode('.png', array[..., ::-1] if array.ndim == 3 else array)[1]
            file.write(encoded.tobytes())


def fit_sample(
    img: np.ndarray,
    gt: Mapping[str, np.ndarray],
    targets: Mapping[str, Mapping],
    size: tuple[int, int],
    paths: Mapping[str, Any],
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Checks a sample and resizes it as ``ResizeMultiTask(size, 'area')`` does in a pipeline.

    Args:
        img: (h, w, 3) float32 in [0, 1].
        gt: {target: array} in the formats of ``MultiTaskDataset``, each of any size.
        targets: Declarations of the targets.
        size: (H, W).
        paths: {'image' or target: file to name in errors}.

    Raises:
        ValueError: As the checks of ``MultiTaskDataset``.
    """
    check_image(img, str(paths['image']))
    for name, value in gt.items():
        check_target(name, value, targets[name], value.shape[:2], str(paths[name]))
    results = ResizeMultiTask(size, 'area').transform(dict(img=img, gt=dict(gt), targets=targets))
    # A mean of values in [0, 1] may round to just above 1.
    return np.clip(results['img'], 0, 1), results['gt']


def archive_array(value: np.ndarray, kind: str) -> np.ndarray:
    """A target in the format of ``MultiTaskDataset`` as the .npy archives have it: labels as float with -1 void, depth
    (H, W, 1)."""
    return ARCHIVED[kind](value)


def _archive_labels(value: np.ndarray) -> np.ndarray:
    return np.where(value == VOID, -1, value).astype(np.float32)


def _as_it_is(value: np.ndarray) -> np.ndarray:
    return value


#: Functions from the format of ``MultiTaskDataset`` to that of the .npy archives.
ARCHIVED: KindTable[Callable[[np.ndarray], np.ndarray]] = KindTable(
    'mmrepmtl.datasets.conversion.arrays.ARCHIVED',
    dict(
        segmentation=_archive_labels,
        binary=_as_it_is,
        depth=lambda value: value[..., None],
        normals=_as_it_is,
    ),
    dense=True,
)
