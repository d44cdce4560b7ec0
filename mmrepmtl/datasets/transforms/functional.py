"""Geometry of images and dense targets as pure functions of arrays.

Coordinates are continuous: pixel i covers [i, i + 1] and its centre is i + 0.5, for every kind of target, so that an
image and its labels cannot drift apart (``cv2.INTER_NEAREST`` takes floor(i * scale) instead, up to half a
source pixel off).
"""

import cv2
import numpy as np

from mmrepmtl.structures.kinds import VOID


def sample_nearest(
    array: np.ndarray,
    size: tuple[int, int],
    top: float = 0.0,
    left: float = 0.0,
    scale: tuple[float, float] | None = None,
) -> np.ndarray:
    """Reads ``array`` (h, w, ...) at the pixel whose area holds each output centre.

    Args:
        array (ndarray): (h, w) or (h, w, C), any dtype.
        size (tuple): (H, W) of the output.
        top, left (float): Origin of the window that is read, in pixels of ``array``.
        scale (tuple, optional): Output pixels per input pixel, (vertical, horizontal); by default the whole array is
            fitted to ``size``.

    Returns:
        ndarray: (H, W) or (H, W, C), same dtype.
    """
    scale = scale or _fit_scale(array, size)
    rows, cols = (
        np.clip(np.floor(origin + (np.arange(length) + 0.5) / factor), 0, limit - 1).astype(np.intp)
        for origin, length, factor, limit in zip((top, left), size, scale, array.shape[:2], strict=True)
    )
    return np.take(np.take(array, rows, axis=0), cols, axis=1)


def sample_bilinear(
    array: np.ndarray,
    size: tuple[int, int],
    top: float = 0.0,
    left: float = 0.0,
    scale: tuple[float, float] | None = None,
) -> np.ndarray:
    """Interpolates ``array`` bilinearly at each output centre; arguments as in :func:`sample_nearest`.

    OpenCV rounds coordinates to 1/32 pixel here. Outside the array its border is repeated.
    """
    vertical, horizontal = scale or _fit_scale(array, size)
    # Inverse map in pixel-centre coordinates: x_in + 0.5 = left + (x_out + 0.5) / scale.
    inverse = np.array(
        [[1 / horizontal, 0, left + 0.5 / horizontal - 0.5], [0, 1 / vertical, top + 0.5 / vertical - 0.5]]
    )
    return cv2.warpAffine(
        array, inverse, size[::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE
    )


def resize_image(img: np.ndarray, size: tuple[int, int], interpolation: str = 'bilinear') -> np.ndarray:
    """Resizes (h, w, C) float to (H, W, C), 'bilinear' or 'area' (mean over each output pixel's area)."""
    return cv2.resize(img, size[::-1], interpolation=_CV2_MODES[interpolation])


def renormalise(normals: np.ndarray, valid: np.ndarray | bool = True, shortest: float = 1e-6) -> np.ndarray:
    """Unit length where ``valid`` (H, W), 0 0 0 elsewhere and where a vector of (H, W, 3) is below ``shortest``.

    A 0 0 0 vector that was interpolated in does not change the direction of the sum, so after this an invalid
    neighbour has no influence. The result is invalid too if opposite vectors cancelled. NaN stays NaN.
    """
    # One component at a time: NumPy is slow along an axis of three.
    x, y, z = (normals[..., axis] for axis in range(3))
    length = np.sqrt(x * x + y * y + z * z)
    factor = np.zeros_like(length)
    np.divide(1.0, length, out=factor, where=valid & ~(length < shortest))
    unit = np.empty_like(normals)
    for axis in range(3):
        np.multiply(normals[..., axis], factor, out=unit[..., axis])
    return unit


def valid_normals(normals: np.ndarray) -> np.ndarray:
    """Mask (H, W) of the pixels that are not 0 0 0."""
    return (normals[..., 0] != 0) | (normals[..., 1] != 0) | (normals[..., 2] != 0)


def resize_normals(normals: np.ndarray, size: tuple[int, int], interpolation: str = 'bilinear') -> np.ndarray:
    """Resizes unit normals (h, w, 3); an output pixel is valid where its nearest input pixel is."""
    valid = sample_nearest(valid_normals(normals), size)
    return renormalise(resize_image(normals, size, interpolation), valid)


def resize_lines(lines: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a map of thin lines (h, w), 0, 1 or 255 void: an output pixel is 1 if any pixel of its area is.

    The nearest pixel would tear lines apart. Without a 1 in its area a pixel is 0 if the area has a 0, else void.
    """
    # The union of areas, one axis after the other; in the order void, 0, 1 that is the maximum.
    ranks = np.select([lines == 1, lines == 0], [2, 1], 0).astype(np.uint8)
    for axis, length in enumerate(size):
        edges = np.arange(length + 1) * (lines.shape[axis] / length)
        first = np.floor(edges[:-1] + 1e-9).astype(np.intp)
        last = np.ceil(edges[1:] - 1e-9).astype(np.intp)
        parts = [np.take(ranks, range(low, high), axis).max(axis) for low, high in zip(first, last, strict=True)]
        ranks = np.stack(parts, axis)
    return np.array([VOID, 0, 1], dtype=lines.dtype)[ranks]


def zoom_normals(
    normals: np.ndarray, size: tuple[int, int], top: float, left: float, scale: float, geometric: bool
) -> np.ndarray:
    """Reads a window of unit normals enlarged ``scale`` times.

    With ``geometric`` the surface is the one that depth / scale at the old focal length describes: points (X, Z, Y)
    become (X, Z / s, Y), so normals, which follow the inverse transpose, become (nx, s ny, nz), renormalised.
    """
    valid = sample_nearest(valid_normals(normals), size, top, left, (scale, scale))
    zoomed = sample_bilinear(normals, size, top, left, (scale, scale))
    if geometric:
        zoomed[..., 1] *= scale
    return renormalise(zoomed, valid)


def mirror(array: np.ndarray) -> np.ndarray:
    """Left and right of (H, W) or (H, W, C) exchanged, in memory of its own."""
    # OpenCV is ten times faster along an axis of three, but does not know all types.
    return cv2.flip(array, 1) if array.dtype == np.float32 else np.ascontiguousarray(array[:, ::-1])


def flip_normals(normals: np.ndarray) -> np.ndarray:
    """Mirrors left and right: pixels change sides and x changes its sign."""
    flipped = mirror(normals)
    flipped[..., 0] *= -1
    return flipped


def pad_bottom_right(array: np.ndarray, size: tuple[int, int], value: float) -> np.ndarray:
    """Extends (h, w, ...) to (H, W, ...) with ``value`` at the bottom and on the right."""
    if array.shape[:2] == size:
        return array
    padded = np.full((*size, *array.shape[2:]), value, dtype=array.dtype)
    padded[: array.shape[0], : array.shape[1]] = array
    return padded


def _fit_scale(array: np.ndarray, size: tuple[int, int]) -> tuple[float, float]:
    return size[0] / array.shape[0], size[1] / array.shape[1]


_CV2_MODES = {'bilinear': cv2.INTER_LINEAR, 'area': cv2.INTER_AREA}
INTERPOLATIONS = tuple(_CV2_MODES)
