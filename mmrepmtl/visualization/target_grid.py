"""A picture of what a network is fed: one row per sample, the image and all its targets side by side."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from mmrepmtl.structures import KINDS, VOID, MultiTaskDataSample

from .colours import INVALID_COLOUR
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
from .panels import FAINT, INK, fit, font, make_pair, palette_of, shorten, unlabelled_panel

_GAP, _CAPTIONS, _NAME = 6, 44, 20
_LEGENDS = {
    'binary': 'white is yes, black no, dark red void',
    'depth': 'depth in metres, black is invalid; each row has its own range',
    'normals': 'red faces right, green up, blue the camera; black is invalid',
}


class _Panel(NamedTuple):
    picture: np.ndarray
    scale: tuple[float, float, str] | None = None


def target_grid(
    images: Sequence[Tensor] | Tensor,
    samples: Sequence[MultiTaskDataSample],
    targets_meta: Mapping[str, Mapping[str, Any]],
    captions: Mapping[str, str] | None = None,
    names: Sequence[str] | None = None,
) -> np.ndarray:
    """Draws a grid: in each row the name of the sample, the image and each target; a missing one is hatched.

    Args:
        images: (3, H, W) each, RGB in [0, 1]. All of it is drawn, padding too, unless ``img_shape`` of the sample says
            where it ends.
        samples: One per image, with targets.
        targets_meta: ``metainfo['targets']`` of the data set; its order is that of the columns.
        captions: {target: what to write above its column}, by default its name.
        names: One per row, by default the sample's ``img_path``.

    Returns:
        (height, width, 3) uint8 RGB.

    Raises:
        ValueError: There is nothing to draw, images and samples do not match, or an image is out of [0, 1].
    """
    if not len(images) or len(images) != len(samples):
        raise ValueError(f'target_grid: {len(images)} images and {len(samples)} samples; give one sample per image')
    pictures = [to_picture(image, sample) for image, sample in zip(images, samples, strict=True)]
    width = panel_width(max(picture.shape[1] for picture in pictures))
    rows = [_make_row(picture, sample, targets_meta, width) for picture, sample in zip(pictures, samples, strict=True)]
    names = names or [str(sample.get('img_path', '')) for sample in samples]
    total = 2 * MARGIN + (1 + len(targets_meta)) * (width + _GAP) - _GAP
    legend = _legend(targets_meta, samples, total - 2 * MARGIN)
    scale = SCALE_HEIGHT if any(KINDS[meta['kind']].ranged for meta in targets_meta.values()) else 0
    body = sum(_NAME + row[0].picture.shape[0] + scale + ROW_GAP for row in rows)
    canvas = Image.new('RGB', (total, 2 * MARGIN + _CAPTIONS + body + LEGEND_LINE * len(legend)), PAPER)
    draw = ImageDraw.Draw(canvas)
    titles = ['image', *((captions or {}).get(name, name) for name in targets_meta)]
    kinds = ['', *(meta['kind'] for meta in targets_meta.values())]
    for column, (title, kind) in enumerate(zip(titles, kinds, strict=True)):
        middle = MARGIN + column * (width + _GAP) + width / 2
        draw.text((middle, MARGIN + 10), shorten(title, width, 16), fill=INK, font=font(16), anchor='mm')
        draw.text((middle, MARGIN + 30), kind, fill=FAINT, font=font(13), anchor='mm')
    top = MARGIN + _CAPTIONS
    for name, row in zip(names, rows, strict=True):
        draw.text((MARGIN, top + _NAME / 2), shorten(name, total - 2 * MARGIN, 13), INK, font(13), anchor='lm')
        for column, panel in enumerate(row):
            left = MARGIN + column * (width + _GAP)
            canvas.paste(Image.fromarray(panel.picture), (left, top + _NAME))
            if panel.scale is not None:
                draw_scale(canvas, draw, panel.scale, left, top + _NAME + panel.picture.shape[0], width)
        top += _NAME + row[0].picture.shape[0] + scale + ROW_GAP
    draw_legend(draw, legend, top)
    return np.asarray(canvas)


def _make_row(picture: np.ndarray, sample: MultiTaskDataSample, targets_meta, width: int) -> list[_Panel]:
    size = panel_size(picture, width)
    panels = [_Panel(fit(picture, size, smooth=True))]
    for name, meta in targets_meta.items():
        target = sample.targets.get(name)
        panels.append(_Panel(unlabelled_panel(size)) if target is None else _draw(to_array(target), meta, size))
    return panels


def _draw(target: np.ndarray, meta: Mapping[str, Any], size: tuple[int, int]) -> _Panel:
    # Pairs are drawn for truth and prediction; the latter's half is not used.
    kind = KINDS[meta['kind']]
    other = np.zeros(len(meta['classes'])) if kind.has_ids and not kind.dense else target
    pair = make_pair(meta['kind'], target, other, meta, size)
    scale = pair.scale
    # The unit of an inverse depth is the data set's affair.
    return _Panel(pair.truth, (*scale[:2], '') if scale and meta.get('inverse') else scale)


def _legend(targets_meta, samples: Sequence[MultiTaskDataSample], width: int) -> list[list[Entry]]:
    lines = []
    for name, meta in targets_meta.items():
        kind = KINDS[meta['kind']]
        if kind.dense and kind.names == 'classes':
            entries = [
                (tuple(colour), str(item)) for colour, item in zip(palette_of(meta), meta['classes'], strict=True)
            ]
            if any(name in sample.targets and bool((sample.targets[name] == VOID).any()) for sample in samples):
                entries.append((INVALID_COLOUR, 'void'))
            lines += wrap_legend(name, entries, width)
        elif kind.legend:
            legend = _LEGENDS.get(kind.name, kind.legend)
            text = 'inverse depth, black is invalid' if meta.get('inverse') else legend
            lines.append([Entry(0, None, f'{name}:  {text}')])
    return lines
