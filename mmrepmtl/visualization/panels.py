"""Truth and prediction of one task on one sample as a pair of panels, by kind of target."""

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmrepmtl.structures.kinds import KindTable
from mmrepmtl.utils.text import one_line

from .colours import colour_binary, colour_depth, colour_normals, colour_segmentation, default_palette, depth_range

INK = (45, 45, 45)
FAINT = (130, 130, 130)
TEXT_PAPER = (247, 247, 247)

_HATCH_PAPER, _HATCH_LINE, _HATCH_STEP = (233, 233, 233), (212, 212, 212), 12
_TOP_CLASSES = 3


@dataclass(frozen=True)
class Pair:
    """Two (h, w, 3) uint8 panels, and the range of their colours (low, high, unit) where it differs from row to row."""

    truth: np.ndarray
    prediction: np.ndarray
    scale: tuple[float, float, str] | None = None


def make_pair(
    kind: str, truth: np.ndarray | None, prediction: np.ndarray, meta: Mapping[str, Any], size: tuple[int, int]
) -> Pair:
    """Draws the truth (None: unlabelled) and the prediction of a target of this kind on panels of ``size`` = (h, w)."""
    return PAIRS[kind](truth, prediction, meta, size)


def palette_of(meta: Mapping[str, Any]) -> list[list[int]]:
    """The declared palette of a segmentation target, or the default one."""
    return list(meta.get('palette') or default_palette(len(meta['classes'])))


def unlabelled_panel(size: tuple[int, int]) -> np.ndarray:
    """A hatched grey panel that says "unlabelled"; no colour map has its look."""
    height, width = size
    image = Image.new('RGB', (width, height), _HATCH_PAPER)
    draw = ImageDraw.Draw(image)
    for start in range(-height, width, _HATCH_STEP):
        draw.line([(start, height), (start + height, 0)], fill=_HATCH_LINE, width=2)
    text_font = font(13)
    half_text, half_line = text_font.getlength('unlabelled') / 2 + 6, 11
    middle = (width / 2, height / 2)
    draw.rectangle(
        [middle[0] - half_text, middle[1] - half_line, middle[0] + half_text, middle[1] + half_line], fill=_HATCH_PAPER
    )
    draw.text(middle, 'unlabelled', fill=FAINT, font=text_font, anchor='mm')
    return np.asarray(image)


def text_panel(lines: list[str], size: tuple[int, int]) -> np.ndarray:
    """Lines of text from the top left; what does not fit is cut with an ellipsis."""
    height, width = size
    image = Image.new('RGB', (width, height), TEXT_PAPER)
    draw = ImageDraw.Draw(image)
    step = 20
    room = max((height - 12) // step, 1)
    shown = lines if len(lines) <= room else [*lines[: room - 1], f'… {len(lines) - room + 1} more']
    for number, line in enumerate(shown):
        draw.text((10, 10 + step * number), shorten(line, width - 20, 14), fill=INK, font=font(14))
    return np.asarray(image)


def fit(panel: np.ndarray, size: tuple[int, int], smooth: bool = False) -> np.ndarray:
    """Resizes a panel to (h, w); pixels stay what they are unless ``smooth``, since mixed labels mean nothing."""
    height, width = size
    if panel.shape[:2] == (height, width):
        return panel
    if not smooth:
        method = cv2.INTER_NEAREST
    else:
        method = cv2.INTER_AREA if width < panel.shape[1] else cv2.INTER_CUBIC
    return cv2.resize(panel, (width, height), interpolation=method)


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's embedded font, so that pictures look alike on all machines."""
    loaded = ImageFont.load_default(size)
    assert isinstance(loaded, ImageFont.FreeTypeFont)  # the font of a given size; the one without is a bitmap
    return loaded


def shorten(text: str, width: float, size: int) -> str:
    """The text on one line, or its beginning and an ellipsis, at most ``width`` pixels wide in font size ``size``."""
    text, text_font = one_line(text), font(size)
    if text_font.getlength(text) <= width:
        return text
    # By halves, since names of files may have thousands of characters.
    fits = bisect_right(range(len(text)), width, key=lambda count: text_font.getlength(f'{text[:count]}…')) - 1
    return f'{text[: max(fits, 0)]}…'


def _segmentation(truth, prediction, meta, size) -> Pair:
    def paint(labels):
        return fit(colour_segmentation(labels, palette_of(meta)), size)

    return _pair(truth, prediction, size, paint, paint)


def _binary(truth, prediction, meta, size) -> Pair:
    def paint(values):
        # Smooth, since lines of one pixel would vanish from a smaller panel; grey in between still means something.
        return fit(colour_binary(values), size, smooth=size[1] < values.shape[1])

    return _pair(truth, prediction, size, paint, paint)


def _depth(truth, prediction, meta, size) -> Pair:
    # The truth's range for both: a wrong prediction saturates in plain sight, and cannot squeeze the truth's colours.
    limits = (None if truth is None else depth_range(truth)) or depth_range(prediction) or (0.0, 1.0)
    low, high = limits[0], max(limits[1], limits[0] * 1.001 + 1e-6)
    pair = _pair(
        truth,
        prediction,
        size,
        lambda depth: fit(colour_depth(depth, low, high), size),
        lambda depth: fit(colour_depth(depth, low, high, valid=np.isfinite(depth)), size),
    )
    return Pair(pair.truth, pair.prediction, (*limits, '1/m' if meta.get('inverse') else 'm'))


def _normals(truth, prediction, meta, size) -> Pair:
    def paint(normals):
        return fit(colour_normals(normals), size)

    return _pair(truth, prediction, size, paint, paint)


def _classification(truth, prediction, meta, size) -> Pair:
    classes = meta['classes']
    best = np.argsort(-prediction, kind='stable')[:_TOP_CLASSES]
    lines = [f'{prediction[index]:.2f}  {classes[index]}' for index in best]
    return _pair(
        truth,
        lines,
        size,
        lambda index: text_panel([str(classes[int(index)])], size),
        lambda shown: text_panel(shown, size),
    )


def _regression(truth, prediction, meta, size) -> Pair:
    def paint(values):
        lines = [
            f'{name}  {value:.4g}' if np.isfinite(value) else f'{name}  unlabelled'
            for name, value in zip(meta['names'], values, strict=True)
        ]
        return text_panel(lines, size)

    return _pair(truth, prediction, size, paint, paint)


def _pair(truth, prediction, size: tuple[int, int], paint_truth: Callable, paint_prediction: Callable) -> Pair:
    return Pair(unlabelled_panel(size) if truth is None else paint_truth(truth), paint_prediction(prediction))


#: Functions of (truth or None, prediction, declaration, (h, w) of the panels) that return the pair.
PAIRS: KindTable[Callable[..., Pair]] = KindTable(
    'mmrepmtl.visualization.panels.PAIRS',
    dict(
        segmentation=_segmentation,
        binary=_binary,
        depth=_depth,
        normals=_normals,
        classification=_classification,
        regression=_regression,
    ),
)
