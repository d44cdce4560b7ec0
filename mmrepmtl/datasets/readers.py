"""Readers of single files, shared by the data sets: each returns the array of ``MultiTaskDataset``'s table.

Every error names the file, what was found in it and what was expected.
"""

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np

from mmrepmtl.datasets import pictures
from mmrepmtl.datasets.transforms.functional import renormalise
from mmrepmtl.structures.kinds import VOID

DATA_ENV = 'MMREPMTL_DATA'

# Shorter vectors of an 8-bit picture are no direction but the compression noise of an invalid (128, 128, 128).
SHORTEST_PICTURE_NORMAL = 0.5


def resolve_root(owner: str, data_root: str | Path | None, name: str) -> str:
    """The folder of a data set.

    Args:
        owner: Class to name in the error.
        data_root: The user's folder; None takes ``name`` in the folder that ``MMREPMTL_DATA`` names.
        name: Folder below the one of the environment variable.

    Raises:
        ValueError: If ``data_root`` is None and the environment variable is not set.
    """
    if data_root is not None:
        return str(Path(data_root).expanduser())
    parent = os.environ.get(DATA_ENV)
    if not parent:
        raise ValueError(
            f'{owner}: pass data_root, or set the environment variable {DATA_ENV} to the folder that holds {name}'
        )
    return str(Path(parent).expanduser() / name)


def read_picture(path: str, flags: int, dtype: Any, expected: str) -> np.ndarray:
    """Decodes a picture with OpenCV, as its EXIF orientation turns it: (H, W, 3) BGR for ``IMREAD_COLOR``, else (H, W).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be decoded, is damaged or cut off, has more pixels than ``MMREPMTL_MAX_PIXELS``, or is
            not ``dtype`` with that many channels.
    """
    array, _ = pictures.decode(path, flags, expected)
    channels = 3 if flags == cv2.IMREAD_COLOR else 2
    if array.dtype != dtype or array.ndim != channels:
        raise ValueError(f'{path}: found {array.shape} {array.dtype}, expected {expected}')
    return array


def read_picture_image(path: str) -> np.ndarray:
    """An RGB picture as (H, W, 3) float32 in [0, 1]; see :func:`read_noted_image`."""
    return read_noted_image(path)[0]


def read_noted_image(path: str, limit: int | None = None) -> tuple[np.ndarray, list[str]]:
    """An RGB picture as (H, W, 3) float32 in [0, 1], and what its owner should know of the way that it was read.

    8 bits are divided by 255. 16 bits are divided by 65535, unless no value is above 255 or 4095: these are 8 and 12
    bits in wider numbers, and would be black. Floats must be in [0, 1]. Transparency and ICC profiles are left out.
    An animation or a document gives its first picture.

    Args:
        path: The file.
        limit: The most pixels; None takes ``MMREPMTL_MAX_PIXELS``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be decoded, is damaged or cut off, has too many pixels, or no RGB in [0, 1].
    """
    expected = 'an RGB image'
    array, header = pictures.decode(path, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH, expected, limit)
    if header.mode == 'LAB':
        raise ValueError(f'{path}: found colours in CIELAB, expected {expected}; convert it')
    notes, scale = [], 255
    if header.frames > 1 and header.format != 'JPEG':  # a JPEG's others are thumbnails
        notes.append(f'the first of the {header.frames} pictures in this file was taken')
    high = float(array.max())
    if array.dtype == np.uint16:
        bits = next(bits for bits in (8, 12, 16) if high < 2**bits)
        scale = 2**bits - 1
        if bits < 16 and high > 0:
            notes.append(f'16 bits per channel, but no value above {high:.0f}: taken as {bits}-bit values')
    elif array.dtype.kind == 'f':
        scale, low = 1, float(array.min())
        # Written so that NaN fails it.
        if not (low >= 0 and high <= 1):
            raise ValueError(f'{path}: found float values from {low:g} to {high:g}, expected {expected} in [0, 1]')
    elif array.dtype != np.uint8:
        raise ValueError(f'{path}: found {array.shape} {array.dtype}, expected {expected} of 8 or 16 bits or floats')
    if array.ndim == 2:
        return np.repeat(np.divide(array, scale, dtype=np.float32)[..., None], 3, axis=2), notes
    # cvtColor knows no doubles.
    array = array.astype(np.float32) if array.dtype == np.float64 else array
    return np.divide(cv2.cvtColor(array, cv2.COLOR_BGR2RGB), scale, dtype=np.float32), notes


def read_picture_label(path: str) -> np.ndarray:
    """An 8-bit grey picture of class ids, 255 void, as (H, W) int64."""
    return read_picture(path, cv2.IMREAD_UNCHANGED, np.uint8, 'an 8-bit grey PNG of class ids').astype(np.int64)


def read_picture_indices(path: str) -> np.ndarray:
    """The stored numbers (H, W) uint8 of a grey or palette picture; a palette's colours are not looked at.

    Raises:
        ValueError: If it cannot be decoded, or has colours of its own.
    """
    expected = 'an 8-bit PNG of label ids, grey or with a palette'
    # OpenCV would replace the numbers by the palette's colours.
    picture = pictures.open_pixels(path, expected)
    if picture.mode not in ('L', 'P'):
        raise ValueError(f'{path}: found a picture of mode {picture.mode}, expected {expected}')
    return np.asarray(picture)


def read_picture_depth(path: str) -> np.ndarray:
    """A 16-bit grey picture of millimetres, 0 invalid, as (H, W) float32 metres."""
    depth = read_picture(path, cv2.IMREAD_UNCHANGED, np.uint16, 'a 16-bit grey PNG of millimetres')
    return np.divide(depth, 1000, dtype=np.float32)


def read_picture_normal(path: str) -> np.ndarray:
    """An 8-bit picture of normals, n = (v - 128) / 127, as (H, W, 3) float32 of unit length, 0 0 0 invalid."""
    coded = read_picture(path, cv2.IMREAD_COLOR, np.uint8, 'an 8-bit image of normals')
    # The division is left to the renormalisation.
    normals = np.subtract(cv2.cvtColor(coded, cv2.COLOR_BGR2RGB), 128, dtype=np.float32)
    return renormalise(normals, shortest=127 * SHORTEST_PICTURE_NORMAL)


def read_npy(path: str, expected: str) -> np.ndarray:
    """A numeric array of a .npy file.

    Raises:
        ValueError: If the file cannot be read, is cut off, or holds something else than numbers.
    """
    try:
        # No pickles: they could run code.
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f'{path}: cannot be read as an array ({error}), expected {expected}') from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in 'fiub':
        raise ValueError(f'{path}: found {getattr(array, "dtype", type(array).__name__)}, expected {expected}')
    return array


def read_npy_image(path: str) -> np.ndarray:
    """(H, W, 3) floating point RGB in [0, 1], as float32."""
    expected = '(H, W, 3) float in [0, 1]'
    img = read_npy(path, expected)
    if not np.issubdtype(img.dtype, np.floating):
        raise ValueError(f'{path}: found {img.shape} {img.dtype}, expected {expected}')
    return img.astype(np.float32)


def read_npy_label(path: str) -> np.ndarray:
    """(H, W) class ids of any numeric type, -1 void, as int64 with 255 void."""
    stored = read_npy(path, '(H, W) class ids, -1 void')
    # NaN and infinity have no integer; -2 is no label, so they are found below.
    label = np.where(np.isfinite(stored), stored, -2).astype(np.int64)
    if (label != stored).any():
        raise ValueError(f'{path}: found values that are no whole numbers, expected class ids, -1 for void')
    label[label == -1] = VOID
    return label


def read_npy_depth(path: str) -> np.ndarray:
    """(H, W, 1) or (H, W) depth, 0 invalid, in the file's own unit, as (H, W) float32."""
    depth = read_npy(path, '(H, W, 1) depth').astype(np.float32)
    return depth[..., 0] if depth.ndim == 3 and depth.shape[2] == 1 else depth


def read_npy_normal(path: str) -> np.ndarray:
    """(H, W, 3) normals, 0 0 0 invalid, as float32 of unit length."""
    normals = read_npy(path, '(H, W, 3) normals').astype(np.float32)
    if normals.ndim != 3 or normals.shape[2] != 3:
        raise ValueError(f'{path}: found {normals.shape}, expected (H, W, 3) normals')
    return renormalise(normals)


def require(module: str, path: str | Path) -> ModuleType:
    """Imports what is needed to read ``path``.

    Raises:
        ModuleNotFoundError: Naming the package to install and the file.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition('.')[0]
        raise ModuleNotFoundError(f'{path}: reading it needs the package {package}: pip install {package}') from error


def read_mat(path: str | Path, expected: str) -> dict[str, Any]:
    """The variables of a MATLAB file older than version 7.3.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read.
        ModuleNotFoundError: If scipy is not installed.
    """
    loadmat = require('scipy.io', path).loadmat
    try:
        return loadmat(str(path))
    except FileNotFoundError:
        raise FileNotFoundError(f'there is no file {path}, expected {expected}') from None
    # SciPy raises whatever its parser stumbles over.
    except Exception as error:
        raise ValueError(f'{path}: cannot be read as a MATLAB file ({error}), expected {expected}') from error


def list_files(folder: Path, endings: Sequence[str], nested: bool = False) -> dict[str, Path]:
    """The files of a folder by name, without their ending; empty where there is no folder.

    Args:
        folder: The folder to look in.
        endings: Lower-case endings, such as '.png' or '_leftimg8bit.png'; a file's case does not matter.
        nested: Look into the folders below ``folder`` instead, one level.
    """
    if not folder.is_dir():
        return {}
    folders = [child for child in folder.iterdir() if child.is_dir()] if nested else [folder]
    found = {}
    for path in (path for child in folders for path in child.iterdir()):
        ending = next((ending for ending in endings if path.name.lower().endswith(ending)), None)
        if ending is not None:
            found[path.name[: -len(ending)]] = path
    return found
