"""One sample on one sheet: per task truth, prediction and error, or the prediction alone, with legends."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from mmrepmtl.structures import KINDS, MultiTaskDataSample

from .colours import DEPTH_COLOURS_K3, INVALID_COLOUR, colour_normals
from .draw import (
    LEGEND_LINE,
    MARGIN,
    PAPER,
    ROW_GAP,
    SCALE_HEIGHT,
    Entry,
    draw_legend,
    draw_scale,
    panel_size,
    panel_width,
    to_array,
    to_picture,
    wrap_legend,
)
from .errors import ERROR_COLOURS_K3, RIGHT_COLOUR, WRONG_COLOUR, make_error
from .panels import INK, fit, font, make_pair, palette_of, shorten, unlabelled_panel

_GAP, _CAPTIONS, _TITLE, _COLUMNS, _SPHERE = 8, 40, 24, 4, 64


class _Panel(NamedTuple):
    caption: str
    picture: np.ndarray
    scale: tuple[float, float, str] | None = None
    colours_K3: np.ndarray = DEPTH_COLOURS_K3


class _Block(NamedTuple):
    """The panels of a task side by side, with its name above them and its legend below."""

    name: str
    panels: list[_Panel]
    legend: list[list[Entry]]
    sphere: bool = False

    @property
    def legend_height(self) -> int:
        return max(LEGEND_LINE * len(self.legend), _SPHERE + 4 if self.sphere else 0)


def task_sheet(
    image: Tensor | np.ndarray,
    sample: MultiTaskDataSample,
    targets_meta: Mapping[str, Mapping[str, Any]],
    head_targets: Mapping[str, str],
    title: str = '',
    draw_gt: bool = True,
) -> np.ndarray:
    """Draws the image and each task's truth | prediction | error; the predictions alone where there is no truth at all.

    Classes have their names beside their colours, depth a bar in metres (in its own unit where the target is inverse),
    normals a sphere. The error's mean is that of the valid pixels of this image.

    Args:
        image: (3, H, W) float RGB in [0, 1] as the data set gives it (padding beyond ``img_shape`` is cut off), or
            (H, W, 3) uint8 RGB.
        sample: With predictions, and with the targets that are known.
        targets_meta: ``metainfo['targets']`` of the data set.
        head_targets: {task: name of its target}, in the order of the blocks.
        title: A line above all.
        draw_gt: Whether to draw truth and error where there is a truth.

    Returns:
        (height, width, 3) uint8 RGB.

    Raises:
        ValueError: There is no task, one whose target is not declared or whose prediction is missing, or a wrong image.
    """
    _check(sample, targets_meta, head_targets)
    picture = image if isinstance(image, np.ndarray) else to_picture(image, sample)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f'task_sheet: an image {picture.shape} {picture.dtype}, expected (H, W, 3) uint8 RGB')
    size = panel_size(picture, panel_width(picture.shape[1]))
    compared = draw_gt and any(target in sample.targets for target in head_targets.values())
    blocks = [
        _task_block(task, target, sample, targets_meta[target], size, compared) for task, target in head_targets.items()
    ]
    first = _Block('', [_Panel('image', fit(picture, size, smooth=True))], [])
    return _draw(_lines(first, blocks), size, title)


def _check(sample, targets_meta, head_targets) -> None:
    if not head_targets:
        raise ValueError('task_sheet: nothing to draw; give at least one task')
    for task, target in head_targets.items():
        if target not in targets_meta:
            raise ValueError(
                f'task_sheet: the target {target!r} of task {task!r} is not declared; the data set has '
                f'{list(targets_meta)}'
            )
        if task not in sample.predictions:
            raise ValueError(f'task_sheet: there is no prediction of task {task!r}, only of {list(sample.predictions)}')


def _task_block(task: str, target: str, sample: MultiTaskDataSample, meta, size, compared: bool) -> _Block:
    prediction = to_array(sample.predictions[task])
    truth = to_array(sample.targets[target]) if compared and target in sample.targets else None
    pair = make_pair(meta['kind'], truth, prediction, meta, size)
    panels = [_Panel('prediction', pair.prediction, _scale(pair.scale, meta))]
    if compared:
        error = None if truth is None else make_error(meta['kind'], truth, prediction, meta, size)
        panels = [
            _Panel('truth', pair.truth, _scale(pair.scale, meta)),
            *panels,
            _Panel('error', unlabelled_panel(size))
            if error is None
            else _Panel(f'error: {error.summary}', error.panel, error.scale, ERROR_COLOURS_K3),
        ]
    width = len(panels) * (size[1] + _GAP) - _GAP
    name = task if task == target else f'{task} ({target})'
    return _Block(name, panels, _legend(target, meta, width, compared), KINDS[meta['kind']].directions)


def _scale(scale: tuple[float, float, str] | None, meta: Mapping[str, Any]) -> tuple[float, float, str] | None:
    # The unit of an inverse depth is the data set's affair; not every one's is 1 / metre.
    return (*scale[:2], '') if scale is not None and meta.get('inverse') else scale


def _legend(target: str, meta: Mapping[str, Any], width: int, compared: bool) -> list[list[Entry]]:
    kind = KINDS[meta['kind']]
    if kind.dense and kind.names == 'classes':
        entries = [(tuple(colour), str(name)) for colour, name in zip(palette_of(meta), meta['classes'], strict=True)]
        marks = [(RIGHT_COLOUR, 'right'), (WRONG_COLOUR, 'wrong'), (INVALID_COLOUR, 'void')] if compared else []
        return wrap_legend(target, entries, width) + (wrap_legend('error', marks, width) if marks else [])
    text = {
        'binary': 'white yes, black no, grey probability',
        'depth': 'inverse depth, unit of the data set' if meta.get('inverse') else 'depth in metres',
    }.get(kind.name, '' if kind.directions else kind.legend)
    return [[Entry(0, None, line)] for line in _wrap(text, width)] if text else []


def _wrap(text: str, width: int) -> list[str]:
    """Lines of whole words, at most ``width`` pixels wide where the words allow it."""
    lines = ['']
    for word in text.split():
        longer = f'{lines[-1]} {word}'.strip()
        if lines[-1] and font(13).getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _lines(first: _Block, blocks: list[_Block]) -> list[list[tuple[int, _Block]]]:
    """Blocks with the column that each starts at: those of several panels one per line, right of the image's column."""
    lines, column = [[(0, first)]], 1
    for block in blocks:
        if column + len(block.panels) > _COLUMNS:
            lines.append([])
            column = 1 if len(block.panels) > 1 else 0
        lines[-1].append((column, block))
        column += len(block.panels)
    return lines


def _draw(lines: list[list[tuple[int, _Block]]], size: tuple[int, int], title: str) -> np.ndarray:
    pitch = size[1] + _GAP
    columns = max(column + len(block.panels) for line in lines for column, block in line)
    heights = [_line_height(line, size) for line in lines]
    top = MARGIN + (_TITLE if title else 0)
    total = (2 * MARGIN + columns * pitch - _GAP, top + sum(heights) + MARGIN)
    canvas = Image.new('RGB', total, PAPER)
    draw = ImageDraw.Draw(canvas)
    if title:
        draw.text((MARGIN, MARGIN), shorten(title, total[0] - 2 * MARGIN, 15), fill=INK, font=font(15), anchor='lt')
    for line, height in zip(lines, heights, strict=True):
        for column, block in line:
            _draw_block(canvas, draw, block, MARGIN + column * pitch, top, size)
        top += height
    return np.asarray(canvas)


def _line_height(line: list[tuple[int, _Block]], size: tuple[int, int]) -> int:
    scale = SCALE_HEIGHT if any(panel.scale for _, block in line for panel in block.panels) else 0
    return _CAPTIONS + size[0] + scale + max(block.legend_height for _, block in line) + ROW_GAP


def _draw_block(canvas: Image.Image, draw: ImageDraw.ImageDraw, block: _Block, left: int, top: int, size) -> None:
    height, width = size
    total = len(block.panels) * (width + _GAP) - _GAP
    name = shorten(block.name, total, 16)
    draw.text((left + total / 2, top + 8), name, fill=INK, font=font(16), anchor='mm')
    bottom = top + _CAPTIONS + height
    for number, panel in enumerate(block.panels):
        x = left + number * (width + _GAP)
        caption = shorten(panel.caption, width, 13)
        draw.text((x + width / 2, top + 29), caption, fill=INK, font=font(13), anchor='mm')
        canvas.paste(Image.fromarray(panel.picture), (x, top + _CAPTIONS))
        if panel.scale is not None:
            draw_scale(canvas, draw, panel.scale, x, bottom, width, panel.colours_K3)
    below = bottom + (SCALE_HEIGHT if any(panel.scale for panel in block.panels) else 0)
    if block.sphere:
        _draw_sphere(canvas, draw, left, below + 4)
    draw_legend(draw, block.legend, below, left)


def _draw_sphere(canvas: Image.Image, draw: ImageDraw.ImageDraw, left: int, top: int) -> None:
    """A ball as the camera sees it, in the colours of its normals, and what they mean."""
    canvas.paste(Image.fromarray(normal_sphere(_SPHERE)), (left, top))
    for number, text in enumerate(('as on this ball:', 'red faces right, green up,', 'blue the camera')):
        draw.text((left + _SPHERE + 8, top + 12 + 19 * number), text, fill=INK, font=font(12), anchor='lm')


def normal_sphere(diameter: int) -> np.ndarray:
    """The colours of the normals of a ball seen by the camera, (diameter, diameter, 3) uint8 on white."""
    axis = (np.arange(diameter) + 0.5) / diameter * 2 - 1
    right, down = np.meshgrid(axis, axis)
    inside = right**2 + down**2 < 1
    towards = np.sqrt(np.where(inside, 1 - right**2 - down**2, 0))
    colours = colour_normals(np.stack([right, -towards, -down]))
    colours[~inside] = PAPER
    return colours
