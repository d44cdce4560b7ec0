"""A picture of what a model predicts: one row per sample, truth and prediction of each task side by side."""

import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from mmrepmtl.structures import KINDS, VOID, MultiTaskDataSample
from mmrepmtl.utils.files import whole_file
from mmrepmtl.utils.text import one_line

from .colours import DEPTH_COLOURS_K3, INVALID_COLOUR
from .panels import FAINT, INK, Pair, fit, font, make_pair, palette_of, shorten

#: Narrower images are magnified by a whole factor to at least MIN_WIDTH pixels, wider ones shrunk to MAX_WIDTH.
MIN_WIDTH, MAX_WIDTH = 160, 400
#: Panels are no higher: those of an image of 1 x 3000 pixels would be half a million, so it is drawn compressed.
MAX_HEIGHT = 1600

PAPER, RULE = (255, 255, 255), (205, 205, 205)
MARGIN, PAIR_GAP, GROUP_GAP, ROW_GAP = 14, 3, 14, 8
CAPTION_HEIGHT, SCALE_HEIGHT, LEGEND_LINE = 46, 20, 22
SWATCH = 13


class _Row(NamedTuple):
    image: np.ndarray
    pairs: list[Pair]


class Entry(NamedTuple):
    """A part of a legend's line: a swatch of the colour, if any, and text."""

    x: float
    colour: tuple[int, ...] | None
    text: str


def prediction_grid(
    images: Sequence[Tensor] | Tensor,
    samples: Sequence[MultiTaskDataSample],
    targets_meta: Mapping[str, Mapping[str, Any]],
    head_targets: Mapping[str, str],
    max_rows: int = 8,
) -> np.ndarray:
    """Draws a grid: the image, then truth and prediction of each task.

    Truth and prediction of depth share one range per row, that of the truth (of the prediction, where there is no
    truth); values beyond it have the colours of its ends. A missing target is a hatched panel that says "unlabelled".

    Args:
        images: (3, H, W) each, RGB in [0, 1]: as the data set gives them, before the preprocessor normalises them.
            Padding beyond a sample's ``img_shape`` is cut off.
        samples: One per image, with targets and predictions.
        targets_meta: ``metainfo['targets']`` of the data set.
        head_targets: {task: name of its target}, in the order of the columns.
        max_rows: At most so many samples are drawn, the first ones.

    Returns:
        (height, width, 3) uint8 RGB.

    Raises:
        ValueError: Nothing to draw; images and samples that do not match; images out of [0, 1]; a task whose target is
            not declared or whose prediction is missing.
    """
    _check(images, samples, targets_meta, head_targets, max_rows)
    metas = {task: targets_meta[target] for task, target in head_targets.items()}
    shown = list(zip(images, samples, strict=True))[:max_rows]
    pictures = [to_picture(image, sample) for image, sample in shown]
    width = panel_width(max(picture.shape[1] for picture in pictures))
    rows = [
        _make_row(picture, sample, metas, head_targets, width)
        for picture, (_, sample) in zip(pictures, shown, strict=True)
    ]

    scale_height = SCALE_HEIGHT if any(KINDS[meta['kind']].ranged for meta in metas.values()) else 0
    total_width = 2 * MARGIN + width + len(metas) * (GROUP_GAP + 2 * width + PAIR_GAP)
    legend = _legend(head_targets, targets_meta, [sample for _, sample in shown], total_width - 2 * MARGIN)
    body = sum(row.image.shape[0] + scale_height + ROW_GAP for row in rows)
    canvas = Image.new('RGB', (total_width, MARGIN + CAPTION_HEIGHT + body + LEGEND_LINE * len(legend) + MARGIN), PAPER)
    draw = ImageDraw.Draw(canvas)
    _draw_captions(draw, head_targets, width)
    top = MARGIN + CAPTION_HEIGHT
    for row in rows:
        _draw_row(canvas, draw, row, top, width)
        top += row.image.shape[0] + scale_height + ROW_GAP
    draw_legend(draw, legend, top)
    return np.asarray(canvas)


def write_grid(
    path: str | os.PathLike,
    images: Sequence[Tensor] | Tensor,
    samples: Sequence[MultiTaskDataSample],
    targets_meta: Mapping[str, Mapping[str, Any]],
    head_targets: Mapping[str, str],
    max_rows: int = 8,
) -> None:
    """Writes :func:`prediction_grid` to ``path`` (.png, .jpg), all of it or nothing; makes the folder.

    Raises:
        ValueError: The ending is that of no picture format, or as for :func:`prediction_grid`.
    """
    check_format(path)
    write_picture(path, prediction_grid(images, samples, targets_meta, head_targets, max_rows))


def write_picture(path: str | os.PathLike, picture: np.ndarray | Image.Image) -> None:
    """Writes a picture, or an array that is one, to ``path`` (.png, .jpg), all of it or nothing; makes the folder.

    Raises:
        ValueError: The ending is that of no picture format.
    """
    encoded = io.BytesIO()
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    picture.save(encoded, format=check_format(path))
    with whole_file(path) as file:
        file.write(encoded.getvalue())


def check_format(path: str | os.PathLike) -> str:
    """Pillow's name of the format that the ending of ``path`` stands for.

    Raises:
        ValueError: It is that of no picture format.
    """
    formats = Image.registered_extensions()
    suffix = Path(path).suffix.lower()
    if suffix not in formats:
        raise ValueError(f'{path} does not end like a picture; use .png or .jpg')
    return formats[suffix]


def _check(images, samples, targets_meta, head_targets, max_rows) -> None:
    if len(images) != len(samples):
        raise ValueError(f'prediction_grid: {len(images)} images, but {len(samples)} samples; give one per image')
    if not len(images) or not head_targets:
        raise ValueError('prediction_grid: nothing to draw; give at least one image and one task')
    if max_rows < 1:
        raise ValueError(f'prediction_grid: max_rows={max_rows} must be at least 1')
    for task, target in head_targets.items():
        if target not in targets_meta:
            raise ValueError(
                f'prediction_grid: the target {target!r} of task {task!r} is not declared; the data set '
                f'has {list(targets_meta)}'
            )
        for number, sample in enumerate(samples[:max_rows]):
            if task not in sample.predictions:
                raise ValueError(
                    f'prediction_grid: sample {number} has no prediction of task {task!r}, only of '
                    f'{list(sample.predictions)}'
                )


def to_array(tensor: Tensor) -> np.ndarray:
    """A tensor as an array on the CPU, half precision as float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def to_picture(image: Tensor, sample: MultiTaskDataSample) -> np.ndarray:
    """The image without padding as (H, W, 3) uint8."""
    if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
        raise ValueError(
            f'prediction_grid: an image of shape {tuple(image.shape)} and {image.dtype}; expected '
            'floating-point (3, H, W) in [0, 1]'
        )
    height, width = sample.get('img_shape', image.shape[1:])
    array = to_array(image)[:, :height, :width].transpose(1, 2, 0)
    low, high = float(array.min()), float(array.max())
    # A little beyond is what interpolation leaves; written so that NaN fails it.
    if not (low >= -0.1 and high <= 1.1):
        raise ValueError(
            f'prediction_grid: image values from {low:g} to {high:g}, expected [0, 1]; give the images as '
            'the data set returns them, before the data preprocessor normalises them'
        )
    return np.rint(255 * array.clip(0, 1)).astype(np.uint8)


def panel_width(width: int) -> int:
    """Width of the panels of an image of this width, see MIN_WIDTH and MAX_WIDTH."""
    if width < MIN_WIDTH:
        # A whole factor, so that every pixel of a label map becomes an equal square.
        return width * math.ceil(MIN_WIDTH / width)
    return min(width, MAX_WIDTH)


def panel_size(picture: np.ndarray, width: int) -> tuple[int, int]:
    """(h, w) of the panels of an image (H, W, 3) at this width, see MAX_HEIGHT."""
    return min(max(round(picture.shape[0] * width / picture.shape[1]), 1), MAX_HEIGHT), width


def _make_row(picture, sample, metas, head_targets, width: int) -> _Row:
    size = panel_size(picture, width)
    pairs = []
    for task, meta in metas.items():
        truth = sample.targets.get(head_targets[task])
        pairs.append(
            make_pair(
                meta['kind'], None if truth is None else to_array(truth), to_array(sample.predictions[task]), meta, size
            )
        )
    return _Row(fit(picture, size, smooth=True), pairs)


def _group_left(index: int, width: int) -> int:
    """Left edge of the panels of the task number ``index``."""
    return MARGIN + width + GROUP_GAP + index * (2 * width + PAIR_GAP + GROUP_GAP)


def _draw_captions(draw: ImageDraw.ImageDraw, head_targets: Mapping[str, str], width: int) -> None:
    upper, rule, lower = MARGIN + 8, MARGIN + 20, MARGIN + 33
    draw.text((MARGIN + width / 2, lower), 'image', fill=INK, font=font(14), anchor='mm')
    for index, (task, target) in enumerate(head_targets.items()):
        left, total = _group_left(index, width), 2 * width + PAIR_GAP
        name = task if task == target else f'{task} ({target})'
        draw.text((left + total / 2, upper), shorten(name, total, 16), fill=INK, font=font(16), anchor='mm')
        draw.line([(left, rule), (left + total - 1, rule)], fill=RULE)
        for column, caption in enumerate(('truth', 'prediction')):
            middle = left + column * (width + PAIR_GAP) + width / 2
            draw.text((middle, lower), caption, fill=INK, font=font(14), anchor='mm')


def _draw_row(canvas: Image.Image, draw: ImageDraw.ImageDraw, row: _Row, top: int, width: int) -> None:
    canvas.paste(Image.fromarray(row.image), (MARGIN, top))
    for index, pair in enumerate(row.pairs):
        left = _group_left(index, width)
        canvas.paste(Image.fromarray(pair.truth), (left, top))
        canvas.paste(Image.fromarray(pair.prediction), (left + width + PAIR_GAP, top))
        if pair.scale is not None:
            draw_scale(canvas, draw, pair.scale, left, top + row.image.shape[0], 2 * width + PAIR_GAP)


def draw_scale(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    scale: tuple[float, float, str],
    left: int,
    top: int,
    width: int,
    colours_K3: np.ndarray = DEPTH_COLOURS_K3,
) -> None:
    """Draws a bar of 256 colours, by default those of depth, with the values of its ends, below a panel or a pair."""
    low, high, unit = scale
    texts = [f'{low:.2f} {unit}', f'{high:.2f} {unit}']
    first, last = (font(12).getlength(text) for text in texts)
    middle = top + SCALE_HEIGHT / 2
    draw.text((left, middle), texts[0], fill=INK, font=font(12), anchor='lm')
    draw.text((left + width, middle), texts[1], fill=INK, font=font(12), anchor='rm')
    bar_width = int(width - first - last - 16)
    if bar_width > 0:
        steps = np.linspace(0, 255, bar_width).round().astype(int)
        bar = np.repeat(colours_K3[steps][None], 8, axis=0)
        canvas.paste(Image.fromarray(bar), (int(left + first + 8), int(middle) - 4))


def _legend(head_targets, targets_meta, samples, width: int) -> list[list[Entry]]:
    """The legend's lines: what the colours of each target mean."""
    lines = []
    for target in dict.fromkeys(head_targets.values()):
        meta, kind = targets_meta[target], KINDS[targets_meta[target]['kind']]
        if kind.dense and kind.names == 'classes':
            entries = [
                (tuple(colour), str(name)) for colour, name in zip(palette_of(meta), meta['classes'], strict=True)
            ]
            if any(target in sample.targets and bool((sample.targets[target] == VOID).any()) for sample in samples):
                entries.append((INVALID_COLOUR, 'void'))
            lines += wrap_legend(target, entries, width)
        elif kind.legend:
            text = 'inverse depth, 1/m' if meta.get('inverse') else kind.legend
            if kind.ranged:
                text += '; the range is that of the truth in each row, of the prediction where there is no truth'
            lines.append([Entry(0, None, f'{target}:  {text}')])
    return lines


def wrap_legend(target: str, entries: Sequence[tuple[tuple[int, ...], str]], width: int) -> list[list[Entry]]:
    """Colours and names in lines of at most ``width`` pixels."""
    text_font = font(13)
    x = start = text_font.getlength(f'{target}:') + 10
    lines = [[Entry(0, None, f'{target}:')]]
    for colour, name in entries:
        name = one_line(name)
        length = SWATCH + 5 + text_font.getlength(name)
        if x > start and x + length > width:
            lines.append([])
            x = start
        lines[-1].append(Entry(x, colour, name))
        x += length + 16
    return lines


def draw_legend(draw: ImageDraw.ImageDraw, lines: Sequence[Sequence[Entry]], top: int, left: float = MARGIN) -> None:
    """Draws the lines of a legend, from (left, top)."""
    origin = left
    for number, line in enumerate(lines):
        middle = top + LEGEND_LINE * number + LEGEND_LINE / 2
        for x, colour, text in line:
            left = origin + x
            if colour is not None:
                box = [left, middle - SWATCH / 2, left + SWATCH, middle + SWATCH / 2]
                draw.rectangle(box, fill=colour, outline=FAINT)
                left += SWATCH + 5
            draw.text((left, middle), text, fill=INK, font=font(13), anchor='lm')
