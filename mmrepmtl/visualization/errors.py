"""Draws where and how much a prediction is wrong: one panel per kind of target."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from mmrepmtl.structures.kinds import VOID, KindTable

from .colours import INVALID_COLOUR
from .panels import fit, text_panel

#: Colours from pale (no error) to dark red; the black of invalid pixels is none of them.
_STOPS_C3 = np.array([[246, 246, 240], [244, 165, 110], [205, 50, 50], [95, 0, 40]], float)
ERROR_COLOURS_K3 = np.stack(
    [np.interp(np.linspace(0, 3, 256), range(4), channel) for channel in _STOPS_C3.T], axis=-1
).astype(np.uint8)

RIGHT_COLOUR = tuple(int(value) for value in ERROR_COLOURS_K3[0])
WRONG_COLOUR = tuple(int(value) for value in ERROR_COLOURS_K3[170])

#: Angles beyond have the last colour.
MAX_ANGLE = 90.0


class ErrorPanel(NamedTuple):
    """A (h, w, 3) uint8 panel, the image's error in words, and the range of the colours (low, high, unit)."""

    panel: np.ndarray
    summary: str
    scale: tuple[float, float, str] | None = None


def make_error(
    kind: str, truth: np.ndarray, prediction: np.ndarray, meta: Mapping[str, Any], size: tuple[int, int]
) -> ErrorPanel:
    """Draws the error of a prediction against its truth, both at one size and as in ``MultiTaskDataSample``.

    Segmentation: wrong pixels red, right ones pale. Depth: absolute difference in metres (in the target's own unit if
    it is inverse). Normals: angle in degrees. Binary: distance of the probability from the label. All invalid pixels
    are black. Classification and regression: text.

    Args:
        kind: That of the target.
        truth, prediction: Arrays.
        meta: The declaration of the target.
        size: (h, w) of the panel.
    """
    return ERRORS[kind](truth, prediction, meta, size)


def angle_map(truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Angle between two (3, H, W) fields of vectors in degrees (H, W), and where the truth is a direction."""
    length = np.linalg.norm(truth, axis=0) * np.linalg.norm(prediction, axis=0)
    cosine = (truth.astype(np.float64) * prediction).sum(0) / np.where(length > 0, length, 1)
    return np.degrees(np.arccos(cosine.clip(-1, 1))), (truth != 0).any(axis=0)


def _segmentation(truth, prediction, meta, size) -> ErrorPanel:
    valid = truth != VOID
    wrong = valid & (truth != prediction)
    colours = np.full((*truth.shape, 3), RIGHT_COLOUR, np.uint8)
    colours[wrong] = WRONG_COLOUR
    colours[~valid] = INVALID_COLOUR
    return ErrorPanel(fit(colours, size), _mean('{:.1f} % wrong', 100.0 * wrong, valid))


def _binary(truth, prediction, meta, size) -> ErrorPanel:
    valid = truth != VOID
    error = np.abs(prediction - np.where(valid, truth, 0))
    return ErrorPanel(_paint(error, valid, 1.0, size), _mean('mean {:.3f}', error, valid), (0.0, 1.0, ''))


def _depth(truth, prediction, meta, size) -> ErrorPanel:
    truth, prediction = truth[0], prediction[0]
    valid = (truth > 0) & np.isfinite(truth)
    error = np.abs(prediction - np.where(valid, truth, 0))
    known = error[valid & np.isfinite(error)]
    high = max(float(known.max()), 1e-6) if known.size else 1.0
    unit = '' if meta.get('inverse') else 'm'
    summary = _mean(f'mean {{:.3f}} {unit}'.rstrip(), error, valid)
    return ErrorPanel(_paint(error, valid, high, size), summary, (0.0, high, unit))


def _normals(truth, prediction, meta, size) -> ErrorPanel:
    angle, valid = angle_map(truth, prediction)
    return ErrorPanel(
        _paint(angle, valid, MAX_ANGLE, size), _mean('mean {:.1f}°', angle, valid), (0.0, MAX_ANGLE, 'degrees')
    )


def _classification(truth, prediction, meta, size) -> ErrorPanel:
    best, true = int(prediction.argmax()), int(truth)
    lines = ['right'] if best == true else ['wrong', f'{prediction[true]:.2f}  for {meta["classes"][true]}']
    return ErrorPanel(text_panel(lines, size), lines[0])


def _regression(truth, prediction, meta, size) -> ErrorPanel:
    error = np.abs(prediction - truth)
    lines = [
        f'{name}  {value:.4g}' if np.isfinite(value) else f'{name}  unlabelled'
        for name, value in zip(meta['names'], error, strict=True)
    ]
    return ErrorPanel(text_panel(lines, size), 'absolute difference')


def _paint(error: np.ndarray, valid: np.ndarray, high: float, size: tuple[int, int]) -> np.ndarray:
    """Colours of errors from 0 to ``high`` (and beyond); a prediction that is not finite is as wrong as can be."""
    relative = np.where(np.isfinite(error), error / high, 1.0).clip(0, 1)
    colours = ERROR_COLOURS_K3[np.rint(255 * relative).astype(np.uint8)]
    colours[~valid] = INVALID_COLOUR
    return fit(colours, size)


def _mean(text: str, error: np.ndarray, valid: np.ndarray) -> str:
    return text.format(error[valid].mean()) if valid.any() else 'no valid pixel'


#: Functions of (truth, prediction, declaration, (h, w) of the panel) that return the panel.
ERRORS: KindTable[Callable[..., ErrorPanel]] = KindTable(
    'mmrepmtl.visualization.errors.ERRORS',
    dict(
        segmentation=_segmentation,
        binary=_binary,
        depth=_depth,
        normals=_normals,
        classification=_classification,
        regression=_regression,
    ),
)
