"""The panels of the web demo: a picture, and below it what its colours mean as HTML."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from mmrepmtl.analysis.saliency_maps import SaliencyMaps
from mmrepmtl.analysis.saliency_sheet import on_picture, overlay, owner_colours, task_colours
from mmrepmtl.structures import KINDS, VOID
from mmrepmtl.visualization.colours import DEPTH_COLOURS_K3
from mmrepmtl.visualization.panels import fit, make_pair, palette_of

#: Smaller pictures are magnified by a whole factor to at least this width, so that browsers do not blur their pixels.
MIN_WIDTH = 384
#: Panels are no higher: a picture of 1 x 1024 pixels would fill gigabytes, so it is drawn compressed.
MAX_HEIGHT = 4096
#: Width of panels that hold text, which browsers must not shrink beyond legibility.
TEXT_WIDTH = 320

_STOPS = 16

#: The style of the page; the colours of the text are those of the browser's light or dark theme.
CSS = """
.panels {display: grid !important; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)); gap: 16px}
.panels .column {min-width: 0 !important; gap: 4px}
.html-container {padding: 0 !important}
.gallery-item .container {width: 136px !important; height: 102px !important; max-width: none !important;
                          max-height: none !important}
#missing:empty {display: none}
.legend {font-size: 13px; line-height: 1.5; min-height: 40px}
.legend .bar {display: flex; align-items: center; gap: 8px}
.legend .bar i {flex: 1; height: 10px; border-radius: 2px}
.legend .swatch {white-space: nowrap; margin-right: 12px; display: inline-block}
.legend .swatch i {display: inline-block; width: 12px; height: 12px; margin-right: 5px; border: 1px solid #888;
                   vertical-align: -1px}
"""


class Panel(NamedTuple):
    """A picture (h, w, 3) uint8 RGB, or None where there is nothing to see, and its legend as HTML."""

    picture: np.ndarray | None
    legend: str


def panel_size(height: int, width: int) -> tuple[int, int]:
    """(h, w) of the panels of a picture, see MIN_WIDTH and MAX_HEIGHT."""
    factor = -(-MIN_WIDTH // width) if width < MIN_WIDTH else 1
    return min(height * factor, MAX_HEIGHT), width * factor


def input_panel(picture: np.ndarray, size: tuple[int, int], grids: Sequence[tuple[int, int]]) -> Panel:
    """The picture as the network sees it.

    Args:
        picture: (h, w, 3) uint8 RGB, the network's input without padding.
        size: (H, W) of the panel.
        grids: (rows, columns) of Z, for each of its levels.
    """
    levels = ' and '.join(f'{columns} x {rows}' for rows, columns in grids)
    text = f'{picture.shape[1]} x {picture.shape[0]} pixels' + (f'; Z has {levels} positions' if levels else '')
    return Panel(fit(picture, size), _legend(text))


def prediction_panel(prediction: np.ndarray, meta: Mapping[str, Any], size: tuple[int, int]) -> Panel:
    """A prediction in colours, with the classes that it holds, its range, or what the colours of its kind mean.

    Args:
        prediction: As in ``MultiTaskDataSample``.
        meta: Declaration of its target.
        size: (H, W) of the panel.
    """
    kind = meta['kind']
    if not KINDS[kind].dense:
        size = (min(max(round(size[0] * TEXT_WIDTH / size[1]), 80), MAX_HEIGHT), TEXT_WIDTH)
    pair = make_pair(kind, None, prediction, meta, size)
    if kind == 'segmentation':
        return Panel(pair.prediction, _classes(prediction, meta))
    if kind == 'depth':
        assert pair.scale is not None  # as the depths in PAIRS have it
        low, high, _ = pair.scale
        unit, what = ('', 'inverse depth, in the unit of the data set') if meta.get('inverse') else (' m', 'metres')
        bar = _bar(DEPTH_COLOURS_K3, f'{low:.2f}{unit}', f'{high:.2f}{unit}')
        return Panel(pair.prediction, _legend(bar, f'{what}; the range is that of this picture'))
    return Panel(pair.prediction, _legend(_TEXTS.get(kind, KINDS[kind].legend)))


def saliency_panels(
    levels: Sequence[SaliencyMaps], picture: np.ndarray, content: tuple[int, int]
) -> tuple[dict[str, Panel], Panel]:
    """Each task's |s| over the picture, and who owns each position; the levels of Z from top to bottom.

    Args:
        levels: Maps of one image, one for each level of Z.
        picture: (H, W, 3) uint8 RGB, the image at the panels' size.
        content: (h, w) at the top left of the network's input that is no padding.

    Returns:
        {task: panel}, and the panel of the ownership P.
    """
    size = picture.shape[:2]
    tasks = levels[0].tasks
    panels = {}
    for number, task in enumerate(tasks):
        maps = [
            fit(on_picture(level.magnitude_TBHW[number, 0].numpy(), level.input_size, content), size)
            for level in levels
        ]
        heat = np.concatenate([overlay(picture, magnitude) for magnitude in maps])
        largest = ' / '.join(f'{magnitude.max():.2g}' for magnitude in maps)
        bar = _bar(_heat_colours(), '0', largest) if any(magnitude.max() > 0 for magnitude in maps) else 'no saliency'
        panels[task] = Panel(heat, _legend(bar))
    owned = [owner_colours(level.ownership_TBHW[:, 0].numpy()) for level in levels]
    owned = [
        fit(on_picture(colours, level.input_size, content), size) for colours, level in zip(owned, levels, strict=True)
    ]
    swatches = []
    for number, (task, colour) in enumerate(zip(tasks, task_colours(len(tasks)), strict=True)):
        shares = ' / '.join(f'{100 * float(level.share_T[number]):.0f}' for level in levels)
        swatches.append(_swatch(colour, f'{task} {shares} %'))
    entropy = ' / '.join(f'{level.entropy:.2f}' for level in levels)
    return panels, Panel(np.concatenate(owned), _legend(''.join(swatches), f'entropy / ln T {entropy}'))


def _classes(labels: np.ndarray, meta: Mapping[str, Any]) -> str:
    """The classes that occur, the largest area first."""
    palette, names = palette_of(meta), meta['classes']
    ids, counts = np.unique(labels[labels != VOID], return_counts=True)
    order = np.argsort(-counts, kind='stable')
    return _legend(
        ''.join(
            _swatch(palette[ids[i]], f'{names[ids[i]]} {_percent(counts[i] / labels.size)}') for i in order.tolist()
        )
    )


def _percent(fraction: float) -> str:
    return '< 1 %' if fraction < 0.01 else f'{100 * fraction:.0f} %'


def _heat_colours() -> np.ndarray:
    """The colours of an overlay on grey, (K, 3), from 0 to the largest value."""
    grey = np.full((1, 256, 3), 128, np.uint8)
    return overlay(grey, np.linspace(0, 1, 256)[None])[0]


def _legend(*lines: str) -> str:
    return f'<div class="legend">{"".join(f"<div>{line}</div>" for line in lines)}</div>'


def _swatch(colour: Sequence[int], text: str) -> str:
    return f'<span class="swatch"><i style="background: {_rgb(colour)}"></i>{escape(text)}</span>'


def _bar(colours_K3: np.ndarray, low: str, high: str) -> str:
    steps = colours_K3[np.linspace(0, len(colours_K3) - 1, _STOPS).round().astype(int)]
    gradient = ', '.join(_rgb(colour) for colour in steps)
    return f'<div class="bar">{low}<i style="background: linear-gradient(to right, {gradient})"></i>{high}</div>'


def _rgb(colour: Sequence[int]) -> str:
    return 'rgb({}, {}, {})'.format(*(int(channel) for channel in colour))


_TEXTS = dict(
    normals=''.join(
        _swatch(colour, text)
        for colour, text in (((255, 128, 128), 'faces right'), ((128, 255, 128), 'up'), ((128, 128, 255), 'the camera'))
    ),
    binary='white is yes, black no, grey a probability',
    classification='the most probable classes',
    regression='in the unit of the data set',
)
