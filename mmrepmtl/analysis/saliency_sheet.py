"""Saliency maps as one picture: a row per image, the models side by side, and CSA's matrices below."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw

from mmrepmtl.analysis.saliency_maps import SaliencyMaps
from mmrepmtl.visualization.draw import MARGIN, PAPER, RULE, draw_legend, draw_scale, panel_size, wrap_legend
from mmrepmtl.visualization.panels import INK, fit, font, shorten

WIDTH, _GAP, _GROUP = 168, 6, 20
_TITLES, _BELOW, _LINE, _CELL, _LABEL = 48, 38, 20, 40, 30
#: Pixels that a number of two digits takes.
_READABLE = 16
HEAT_K3 = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_INFERNO)[:, 0, ::-1].copy()


def saliency_sheet(
    pictures: Sequence[np.ndarray],
    captions: Sequence[tuple[str, str]],
    runs: Mapping[str, SaliencyMaps],
    notes: Sequence[str] = (),
) -> np.ndarray:
    """Draws, for each model and image, every task's |s_t| over the image and the ownership P_t; below, CSA's cosines.

    The colours of |s_t| span 0 to the panel's own largest value, which stands below it. Ownership mixes the tasks'
    colours by P_t, so that a pure colour is one owner and grey a position that all share; below it stand its
    entropy / ln T and the tasks' shares.

    Args:
        pictures: (H, W, 3) uint8 RGB, the images without padding.
        captions: Two lines for each image.
        runs: {title: maps of that model on these images}.
        notes: Lines at the bottom.

    Returns:
        (height, width, 3) uint8 RGB.

    Raises:
        ValueError: The models' maps are of other tasks or of another number of images.
    """
    first = next(iter(runs.values()))
    for title, maps in runs.items():
        if maps.tasks != first.tasks or maps.magnitude_TBHW.shape[1] != len(pictures):
            raise ValueError(
                f'saliency_sheet: {title} has the tasks {maps.tasks} on {maps.magnitude_TBHW.shape[1]} images, '
                f'expected {first.tasks} on {len(pictures)}'
            )
    group = (len(first.tasks) + 1) * (WIDTH + _GAP) - _GAP
    lefts = [MARGIN + WIDTH + _GROUP + number * (group + _GROUP) for number in range(len(runs))]
    total = lefts[-1] + group + MARGIN
    heights = [panel_size(picture, WIDTH)[0] + _BELOW for picture in pictures]
    matrices_top = MARGIN + _TITLES + sum(heights)
    legend = wrap_legend('owner', list(zip(task_colours(len(first.tasks)), first.tasks, strict=True)), total)
    cell = _cell_size(len(pictures), len(first.tasks), group)
    legend_top = matrices_top + 3 * _LINE + len(pictures) * cell + _LINE
    canvas = Image.new('RGB', (total, legend_top + _LINE * (len(legend) + len(notes) + 1)), PAPER)
    draw = ImageDraw.Draw(canvas)
    for left, (title, maps) in zip(lefts, runs.items(), strict=True):
        _draw_titles(draw, title, maps.tasks, left, group)
        _draw_matrices(canvas, draw, maps, left, matrices_top, cell, left + group)
    top = MARGIN + _TITLES
    for number, (picture, height) in enumerate(zip(pictures, heights, strict=True)):
        size = (height - _BELOW, WIDTH)
        canvas.paste(Image.fromarray(fit(picture, size, smooth=True)), (MARGIN, top))
        _draw_below(draw, [f'{number + 1}: {captions[number][0]}', captions[number][1]], MARGIN, top + size[0])
        for left, maps in zip(lefts, runs.values(), strict=True):
            _draw_row(canvas, draw, maps, number, picture, left, top, size)
        top += height
    draw_legend(draw, legend, legend_top)
    for number, note in enumerate(notes):
        y = legend_top + _LINE * (len(legend) + number) + _LINE // 2
        draw.text((MARGIN, y), shorten(note, total - 2 * MARGIN, 12), fill=INK, font=font(12), anchor='lm')
    return np.asarray(canvas)


def task_colours(count: int) -> list[tuple[int, int, int]]:
    """Colours of equally spaced hues, whose equal mixture is grey."""
    # HSV of OpenCV: hues are 0 to 179.
    hsv = np.array([[[round(8 + 180 * index / count) % 180, 200, 235] for index in range(count)]], np.uint8)
    return [(int(red), int(green), int(blue)) for red, green, blue in cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0]]


def overlay(picture: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    """Heat over the grey image; the largest value is opaque yellow, 0 shows the image.

    Args:
        picture: (H, W, 3) uint8.
        magnitude: (H, W), not negative.
    """
    largest = magnitude.max()
    relative = magnitude / largest if largest > 0 else magnitude
    heat = HEAT_K3[np.rint(255 * relative).astype(np.uint8)]
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None]
    alpha = np.sqrt(relative)[..., None]
    return np.rint((1 - alpha) * (0.35 * grey + 60) + alpha * heat).clip(0, 255).astype(np.uint8)


def owner_colours(ownership_THW: np.ndarray) -> np.ndarray:
    """The tasks' colours mixed by their shares, black where nobody owns anything, (H, W, 3) uint8."""
    colours_T3 = np.array(task_colours(len(ownership_THW)), float)
    return np.rint(np.einsum('thw,tc->hwc', ownership_THW, colours_T3)).clip(0, 255).astype(np.uint8)


def on_picture(map_HW: np.ndarray, input_size: tuple[int, int], picture_size: tuple[int, int]) -> np.ndarray:
    """A map that covers the padded input as (H, W, ...) of the picture: squares, since Z has no finer detail."""
    height, width = input_size
    full = cv2.resize(map_HW, (width, height), interpolation=cv2.INTER_NEAREST)
    return full[: picture_size[0], : picture_size[1]]


def _draw_titles(draw: ImageDraw.ImageDraw, title: str, tasks: Sequence[str], left: int, group: int) -> None:
    name = shorten(title, group, 15)
    draw.text((left + group / 2, MARGIN + 8), name, fill=INK, font=font(15), anchor='mm')
    draw.line([(left, MARGIN + 20), (left + group - 1, MARGIN + 20)], fill=RULE)
    for number, caption in enumerate([*(f'|s| {task}' for task in tasks), 'ownership P']):
        x = left + number * (WIDTH + _GAP) + WIDTH / 2
        draw.text((x, MARGIN + 34), shorten(caption, WIDTH, 13), fill=INK, font=font(13), anchor='mm')


def _draw_row(canvas, draw, maps: SaliencyMaps, number: int, picture: np.ndarray, left: int, top: int, size) -> None:
    shape = picture.shape[:2]
    for index in range(len(maps.tasks)):
        magnitude = on_picture(maps.magnitude_TBHW[index, number].numpy(), maps.input_size, shape)
        x = left + index * (WIDTH + _GAP)
        canvas.paste(Image.fromarray(fit(overlay(picture, magnitude), size)), (x, top))
        text = f'max {magnitude.max():.2g}' if magnitude.max() > 0 else 'no saliency'
        _draw_below(draw, [text], x, top + size[0])
    shares_THW = maps.ownership_TBHW[:, number]
    colours = on_picture(owner_colours(shares_THW.numpy()), maps.input_size, shape)
    x = left + len(maps.tasks) * (WIDTH + _GAP)
    canvas.paste(Image.fromarray(fit(colours, size)), (x, top))
    owned = shares_THW.sum(0) > 0
    entropy = -torch.special.xlogy(shares_THW, shares_THW).sum(0).mean() / np.log(max(len(shares_THW), 2))
    shares = [f'{100 * float(share[owned].mean()):.0f}' if owned.any() else '-' for share in shares_THW]
    _draw_below(draw, [f'entropy {float(entropy):.2f}', f'shares {" / ".join(shares)} %'], x, top + size[0])


def _draw_below(draw: ImageDraw.ImageDraw, lines: Sequence[str], left: int, top: int) -> None:
    for number, line in enumerate(lines):
        text = shorten(line, WIDTH, 11)
        draw.text((left, top + 9 + 14 * number), text, fill=INK, font=font(11), anchor='lm')


def _cell_size(count: int, tasks: int, group: int) -> int:
    """Height of the cells: both matrices of a model must fit below its panels, however many images there are."""
    return max(min(_CELL, (group - 3 * _LABEL - tasks * 2 * _CELL) // count), 1)


def _draw_matrices(canvas, draw, maps: SaliencyMaps, left: int, top: int, cell: int, right: int) -> None:
    """Anchors by anchors, and beside it anchors by the tasks' affinities."""
    count, tasks = maps.affinity_BT.shape
    images = [str(number + 1) for number in range(count)]
    parts = (
        ('CSA: cosine of anchors', maps.anchor_BB, images, left, cell),
        ("anchor and the tasks' affinities", maps.affinity_BT, maps.tasks, 0, 2 * _CELL),
    )
    for title, values_BK, columns, x, width in parts:
        x = x or left + 2 * _LABEL + max(count * cell, WIDTH)
        draw.text((x, top + 10), shorten(title, right - x, 13), fill=INK, font=font(13), anchor='lm')
        bar = min(WIDTH, len(columns) * width)
        draw_scale(canvas, draw, (0.0, 1.0, ''), x + _LABEL, top + _LINE, bar, HEAT_K3)
        _draw_matrix(draw, values_BK.numpy(), (images, columns), x + _LABEL, top + 3 * _LINE, (cell, width))


def _draw_matrix(draw, values: np.ndarray, names, left: int, top: int, cell: tuple[int, int]) -> None:
    """Cells of (height, width); numbers and names where there is room for them."""
    (rows, columns), (height, width) = names, cell
    for number, name in list(enumerate(columns))[:: -(-_READABLE // width)]:
        x = left + (number + 0.5) * width
        draw.text((x, top - 10), shorten(name, max(width, _READABLE) - 4, 12), fill=INK, font=font(12), anchor='mm')
    for row, name in list(enumerate(rows))[:: -(-_READABLE // height)]:
        draw.text((left - 8, top + (row + 0.5) * height), name, fill=INK, font=font(12), anchor='rm')
    for row, column in np.ndindex(values.shape):
        value, x, y = values[row, column], left + column * width, top + row * height
        known = np.isfinite(value)
        colour = tuple(int(channel) for channel in HEAT_K3[int(255 * value.clip(0, 1))]) if known else RULE
        gap = 2 if min(cell) > _READABLE else 1
        draw.rectangle([x, y, x + width - gap, y + height - gap], fill=colour)
        if height >= _READABLE and width >= 2 * _READABLE:
            ink = (0, 0, 0) if not known or value > 0.6 else (255, 255, 255)
            text = f'{value:.2f}' if known else '-'
            draw.text((x + width / 2, y + height / 2), text, fill=ink, font=font(12), anchor='mm')
