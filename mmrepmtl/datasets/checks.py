"""Checks of target declarations and of loaded samples: one clear error instead of a wrong number later."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mmrepmtl.structures.kinds import VOID, KindTable, find_kind

# JPEG or 8-bit storage is renormalised on loading; what is left is float32 rounding.
UNIT_TOLERANCE = 1e-2


def check_targets(targets: Mapping[str, Mapping]) -> None:
    """Checks the declarations ``metainfo['targets']``.

    Raises:
        ValueError: An unknown kind; a segmentation or classification without ``classes``, or a segmentation with more
            classes than ids below the void label 255; a regression without ``names``; a palette of another length.
    """
    for name, meta in targets.items():
        kind = find_kind(meta.get('kind'), f'target {name!r}')
        if kind.names and not meta.get(kind.names):
            raise ValueError(f'target {name!r} of kind {kind.name!r} must declare its {kind.names!r}')
        if kind.dense and kind.has_ids and kind.names:
            count = len(meta[kind.names])
            if count > VOID:
                raise ValueError(f'target {name!r}: {count} classes, but label {VOID} is void, so at most {VOID}')
            if 'palette' in meta and len(meta['palette']) != count:
                raise ValueError(f'target {name!r}: {len(meta["palette"])} palette colours for {count} classes')


def check_image(img: Any, path: str) -> None:
    """Checks that ``img`` is (H, W, 3) float32 in [0, 1].

    Raises:
        ValueError: Naming the file, what was found and what was expected.
    """
    where = f'{path}: image'
    _expect_array(where, img, np.float32, '(H, W, 3) float32 in [0, 1]', lambda dims: len(dims) == 3 and dims[2] == 3)
    low, high = float(img.min()), float(img.max())
    # Written so that NaN fails it.
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(f'{where}: found values from {low:g} to {high:g}, expected finite values in [0, 1]')


def check_target(name: str, value: Any, meta: Mapping, size: tuple[int, int], path: str) -> None:
    """Checks one loaded target against its declaration.

    Args:
        name (str): Name of the target.
        value (ndarray or int): As the table in ``MultiTaskDataset`` says.
        meta (Mapping): Its entry in ``metainfo['targets']``.
        size (tuple): (H, W) of the image.
        path (str): File to name in errors.

    Raises:
        ValueError: Naming the file, the target, what was found and what was expected.
    """
    CHECKS[meta['kind']](f'{path}: target {name!r}', value, meta, size)


def _expect_array(where: str, value: Any, dtype: Any, expected: str, shape_fits: Any) -> None:
    if not isinstance(value, np.ndarray):
        raise ValueError(f'{where}: found {type(value).__name__}, expected an array {expected}')
    if value.dtype != dtype or not shape_fits(value.shape):
        raise ValueError(f'{where}: found {value.shape} {value.dtype}, expected {expected}')


def _check_segmentation(where: str, value: Any, meta: Mapping, size: tuple[int, int]) -> None:
    count = len(meta['classes'])
    _expect_array(where, value, np.int64, f'{size} int64, the size of the image', lambda shape: shape == size)
    if int(value.min()) < 0 or int(value.max()) >= count:
        wrong = np.unique(value[(value < 0) | ((value >= count) & (value != VOID))])
        if wrong.size:
            raise ValueError(f'{where}: found labels {wrong[:5].tolist()}, expected 0 to {count - 1}, or {VOID} (void)')


def _check_binary(where: str, value: Any, meta: Mapping, size: tuple[int, int]) -> None:
    _expect_array(where, value, np.int64, f'{size} int64, the size of the image', lambda shape: shape == size)
    wrong = np.unique(value[(value != 0) & (value != 1) & (value != VOID)])
    if wrong.size:
        raise ValueError(f'{where}: found labels {wrong[:5].tolist()}, expected 0 (no), 1 (yes), or {VOID} (void)')


def _check_depth(where: str, value: Any, meta: Mapping, size: tuple[int, int]) -> None:
    _expect_array(where, value, np.float32, f'{size} float32, the size of the image', lambda shape: shape == size)
    low, high = float(value.min()), float(value.max())
    if not (low >= 0.0 and math.isfinite(high)):
        raise ValueError(f'{where}: found values from {low:g} to {high:g}, expected finite, 0 (invalid) or more')


def _check_normals(where: str, value: Any, meta: Mapping, size: tuple[int, int]) -> None:
    shape = (*size, 3)
    _expect_array(where, value, np.float32, f'{shape} float32, the size of the image', lambda found: found == shape)
    squared = np.einsum('hwc,hwc->hw', value, value)
    # Written so that NaN counts as wrong.
    right = (np.abs(squared - 1.0) <= 2 * UNIT_TOLERANCE) | (squared == 0.0)
    if not right.all():
        worst = float(np.sqrt(squared[~right][0]))
        raise ValueError(
            f'{where}: found {int((~right).sum())} vectors of a length such as {worst:g}, '
            f'expected unit length, or 0 0 0 for invalid'
        )


def _check_classification(where: str, value: Any, meta: Mapping, size: tuple[int, int]) -> None:
    count = len(meta['classes'])
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise ValueError(f'{where}: found {type(value).__name__}, expected an int from 0 to {count - 1}')
    if not 0 <= value < count:
        raise ValueError(f'{where}: found class {int(value)}, expected 0 to {count - 1}')


def _check_regression(where: str, value: Any, meta: Mapping, size: tuple[int, int]) -> None:
    shape = (len(meta['names']),)
    _expect_array(where, value, np.float32, f'{shape} float32', lambda found: found == shape)
    if np.isinf(value).any():
        raise ValueError(f'{where}: found an infinite value, expected finite values, or NaN for invalid')


#: Functions of (beginning of the message, loaded value, declaration, (H, W) of the image); they raise ValueError.
CHECKS: KindTable[Callable[[str, Any, Mapping, tuple[int, int]], None]] = KindTable(
    'mmrepmtl.datasets.checks.CHECKS',
    dict(
        segmentation=_check_segmentation,
        binary=_check_binary,
        depth=_check_depth,
        normals=_check_normals,
        classification=_check_classification,
        regression=_check_regression,
    ),
)
