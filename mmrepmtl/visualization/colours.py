"""Values as colours: pure functions from arrays in the formats of ``MultiTaskDataSample`` to (H, W, 3) uint8 RGB."""

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np

from mmrepmtl.structures.kinds import VOID

#: Void labels, invalid depth and invalid normals.
INVALID_COLOUR = (0, 0, 0)

#: The colours of yes-or-no maps; black and grey are values there.
BINARY_BLACK = 24
BINARY_VOID_COLOUR = (120, 30, 30)

#: Viridis: perceptually uniform, and no colour of it is near the black of invalid pixels. Near is dark, far yellow.
DEPTH_COLOURS_K3 = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_VIRIDIS)[:, 0, ::-1].copy()


def default_palette(num_classes: int) -> list[list[int]]:
    """Distinct RGB colours for a target that declares none; the first ones do not depend on how many there are."""
    # The golden ratio spreads any number of hues; brightness alternates, so that neighbours in the circle differ, too.
    hues = ((index * 0.6180339887498949) % 1 for index in range(num_classes))
    return [
        [round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, 0.65, (0.95, 0.75, 0.55)[index % 3])]
        for index, hue in enumerate(hues)
    ]


def colour_segmentation(labels: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Paints class ids in the colours of a palette, void (255) black.

    Args:
        labels: (H, W) integer class ids.
        palette: One RGB colour of 0 to 255 per class.

    Raises:
        ValueError: If a label is neither void nor has a colour.
    """
    num_classes = len(palette)
    wrong = np.unique(labels[(labels != VOID) & ((labels < 0) | (labels >= num_classes))])
    if wrong.size:
        raise ValueError(
            f'colour_segmentation: labels {wrong[:5].tolist()} have no colour, the palette is for 0 to '
            f'{num_classes - 1} ({VOID} is void); check the classes and the palette of the target'
        )
    colours_K3 = np.full((VOID + 1, 3), INVALID_COLOUR, dtype=np.uint8)
    colours_K3[:num_classes] = palette
    return colours_K3[labels]


def colour_binary(values: np.ndarray) -> np.ndarray:
    """Paints 0 to 1 in grey, from nearly black to white, and void (255 or not finite) dark red.

    Args:
        values: (H, W) labels 0, 1 and 255, or probabilities.

    Raises:
        ValueError: If a value is none of these.
    """
    valid = np.isfinite(values) & (values != VOID)
    wrong = np.unique(values[valid & ((values < 0) | (values > 1))])
    if wrong.size:
        raise ValueError(f'colour_binary: values {wrong[:5].tolist()}, expected 0 to 1, or {VOID} (void)')
    grey = np.rint(np.where(valid, values, 0) * (255 - BINARY_BLACK) + BINARY_BLACK).astype(np.uint8)
    colours = np.repeat(grey[..., None], 3, axis=-1)
    colours[~valid] = BINARY_VOID_COLOUR
    return colours


def depth_range(depth: np.ndarray) -> tuple[float, float] | None:
    """Least and greatest valid (finite and positive) depth, or None where there is no valid pixel."""
    valid = depth[np.isfinite(depth) & (depth > 0)]
    return (float(valid.min()), float(valid.max())) if valid.size else None


def colour_depth(depth: np.ndarray, vmin: float, vmax: float, valid: np.ndarray | None = None) -> np.ndarray:
    """Paints depth in the viridis colours, from dark blue at ``vmin`` to yellow at ``vmax`` and beyond.

    Args:
        depth: (1, H, W) or (H, W), metres.
        vmin, vmax: Range of the colours, metres.
        valid: (H, W) or (1, H, W) bool, all others are black; None: finite and positive. A prediction is valid wherever
            it is finite, since a negative one is a mistake to be seen.

    Raises:
        ValueError: If the range is empty.
    """
    if not vmin < vmax:
        raise ValueError(f'colour_depth: vmin={vmin:g} must be less than vmax={vmax:g}')
    depth = _single_channel('colour_depth', depth)
    valid = np.isfinite(depth) & (depth > 0) if valid is None else np.isfinite(depth) & valid.reshape(depth.shape)
    position = (np.where(valid, depth, vmin).astype(np.float64) - vmin) / (vmax - vmin)
    colours = DEPTH_COLOURS_K3[np.rint(255 * position.clip(0, 1)).astype(np.uint8)]
    colours[~valid] = INVALID_COLOUR
    return colours


def colour_normals(normals: np.ndarray) -> np.ndarray:
    """Paints surface normals as the usual RGB normal map.

    NYUv2's axes are (right, into the scene, up). A normal map has red to the right, green up and blue *out of* the
    scene, so the colour is ((right, up, -into) + 1) / 2: a wall that faces the camera is the familiar (128, 128, 255),
    a floor green, a wall that faces right red. Vectors of another length than 1 are normalised; the zero vector, which
    is no direction, is black.

    Args:
        normals: (3, H, W).

    Raises:
        ValueError: If the shape is another one.
    """
    if normals.ndim != 3 or normals.shape[0] != 3:
        raise ValueError(f'colour_normals: found shape {normals.shape}, expected (3, H, W)')
    right, into, up = normals.astype(np.float64)
    length = np.sqrt(right**2 + into**2 + up**2)
    valid = np.isfinite(length) & (length > 0)
    seen = np.stack([right, up, -into], axis=-1)[valid] / length[valid, None]
    colours = np.empty((*length.shape, 3), dtype=np.uint8)
    colours[valid] = np.rint(127.5 * (seen + 1))
    colours[~valid] = INVALID_COLOUR
    return colours


def _single_channel(function: str, values: np.ndarray) -> np.ndarray:
    if values.ndim == 3 and values.shape[0] == 1:
        return values[0]
    if values.ndim != 2:
        raise ValueError(f'{function}: found shape {values.shape}, expected (1, H, W) or (H, W)')
    return values
