"""Figures as SVG that stands in the page: text in the colour of the page, each method in its own class."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from mmrepmtl.comparison.report.history import Curve
from mmrepmtl.comparison.statistics import Difference
from mmrepmtl.utils.text import one_line

#: Readable on white and on black.
PALETTE = (
    '#3b82d6', '#e0662f', '#2f9e5b', '#c0479b', '#a08000', '#7a6be0', '#1f9aa8', '#d64545', '#6f8f1f', '#9b6b43',
    '#d98fb8', '#7d8794',
)  # fmt: skip
DASHES = ('-', '--', ':')
#: matplotlib knows no colour of the page, so this one, which nothing else has, stands for it.
INK = '#010203'
#: A logarithmic axis has ticks at 1, 2 and 5; over less than this factor it would have too few.
_LOG_FROM = 5
_FAINT, _COLUMNS, _PANEL, _LONGEST = 0.18, 3, (3.2, 2.3), 36

Panels = Mapping[str, Mapping[str, Curve]]
"""{title: {label: curve}}."""


def style_of(index: int) -> tuple[str, str]:
    """Colour and dashes of the method with this number."""
    return PALETTE[index % len(PALETTE)], DASHES[index // len(PALETTE) % len(DASHES)]


def draw_curves(panels: Panels, labels: Sequence[str], x: str, log: bool = False) -> str:
    """Curves, one panel per number, one line per method.

    Args:
        panels: The curves.
        labels: All methods, in the order of their colours.
        x: What the horizontal axis counts.
        log: Logarithmic where all values are positive and some are five times as large as others.
    """
    figure, axes = _grid(len(panels), _PANEL)
    for axis, (title, found) in zip(axes, panels.items(), strict=True):
        for label, curve in found.items():
            index = labels.index(label)
            colour, dashes = style_of(index)
            marker = '.' if len(curve.steps) < 3 else None
            (line,) = axis.plot(curve.steps, curve.values, dashes, color=colour, linewidth=1.4, marker=marker)
            line.set_gid(f'method-{index}')
        values = [value for curve in found.values() for value in curve.values]
        if log and min(values) > 0 and max(values) > _LOG_FROM * min(values):
            axis.set_yscale('log')
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
            axis.minorticks_off()
        axis.set_title(_plain(title), fontsize=9, color=INK)
        axis.set_xlabel(x, fontsize=8, color=INK)
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return _svg(figure, 'curves of ' + ', '.join(panels))


def draw_forest(groups: Mapping[str, Sequence[Difference]], labels: Sequence[str]) -> str:
    """Delta p against each reference: a dot per seed, the mean, its own interval (thick) and the corrected one (thin).

    Args:
        groups: {reference: comparisons with it}.
        labels: All methods, in the order of their colours.
    """
    names = [entry.label for entries in groups.values() for entry in entries]
    rows = max(len(entries) for entries in groups.values())
    figure, axes = _grid(len(groups), (3.7, 0.9 + 0.3 * rows), left=_room(names), columns=len(groups))
    for axis, (reference, entries) in zip(axes, groups.items(), strict=True):
        shown = list(reversed(entries))
        for row, entry in enumerate(shown):
            _draw_difference(axis, row, entry, labels.index(entry.label))
        axis.axvline(0, color=INK, linewidth=0.8)
        axis.set_yticks(range(len(shown)), [_plain(entry.label) for entry in shown])
        axis.set_ylim(-0.6, len(shown) - 0.4)
        axis.set_xlim(*_limits(entries))
        axis.set_title(f'against {_plain(reference)}', fontsize=9, color=INK)
        axis.set_xlabel('Delta p, percentage points; right is better', fontsize=8, color=INK)
    return _svg(figure, 'Delta p with intervals against ' + ', '.join(groups))


def _draw_difference(axis: Axes, row: int, entry: Difference, index: int) -> None:
    colour, _ = style_of(index)
    artists = []
    if entry.interval is not None and entry.plain is not None:
        artists += axis.plot(entry.interval, [row, row], '-', color=colour, linewidth=1)
        artists += axis.plot(entry.plain, [row, row], '-', color=colour, linewidth=3.5, alpha=0.55)
    if entry.mean is not None:
        artists += axis.plot(
            list(entry.values.values()), [row + 0.22] * len(entry.values), '.', color=INK, markersize=3, alpha=0.6
        )
        face = colour if entry.clear else 'none'
        artists += axis.plot([entry.mean], [row], 'o', color=colour, markerfacecolor=face, markersize=6)
    for artist in artists:
        artist.set_gid(f'method-{index}')


def _limits(entries: Sequence[Difference]) -> tuple[float, float]:
    """A range that shows all seeds; an interval of two seeds may be a hundred times as wide, and is cut."""
    values = [value for entry in entries for value in entry.values.values()] or [0.0]
    low, high = min(0.0, *values), max(0.0, *values)
    reach = max(high - low, 1.0)
    ends = [end for entry in entries if entry.interval is not None for end in entry.interval]
    low, high = max(min([low, *ends]), low - 1.5 * reach), min(max([high, *ends]), high + 1.5 * reach)
    margin = max(0.06 * (high - low), 0.05)
    return low - margin, high + margin


def draw_bars(panels: Mapping[str, Mapping[str, float]], labels: Sequence[str]) -> str:
    """Horizontal bars, one panel per number.

    Args:
        panels: {title: {label: value}}.
        labels: All methods, in the order of their colours.
    """
    rows = max(len(found) for found in panels.values())
    left = _room([label for found in panels.values() for label in found])
    figure, axes = _grid(len(panels), (3.7, 0.8 + 0.26 * rows), left=left, columns=len(panels))
    for axis, (title, found) in zip(axes, panels.items(), strict=True):
        shown = list(reversed(list(found.items())))
        for row, (label, value) in enumerate(shown):
            index = labels.index(label)
            (bar,) = axis.barh([row], [value], height=0.7, color=style_of(index)[0])
            text = axis.text(
                value, row, f' {value:.3g}' if value < 1000 else f' {value:.0f}', va='center', fontsize=8, color=INK
            )
            for artist in (bar, text):
                artist.set_gid(f'method-{index}')
        axis.set_yticks(range(len(shown)), [_plain(label) for label, _ in shown])
        axis.margins(x=0.16)
        axis.set_title(_plain(title), fontsize=9, color=INK)
    return _svg(figure, ', '.join(panels))


def _grid(
    number: int, panel: tuple[float, float], left: float = 0.5, columns: int = _COLUMNS
) -> tuple[Figure, list[Axes]]:
    """A figure with panels in rows; sizes and the room left of each are inches. Its own layout would take seconds."""
    columns = min(number, columns)
    rows = -(-number // columns)
    width, height = (panel[0] + left) * columns, panel[1] * rows
    figure, axes = Figure(figsize=(width, height)), []
    top, bottom, right = 0.28, 0.45, 0.15
    for index in range(number):
        row, column = divmod(index, columns)
        x, y = column * (panel[0] + left) + left, (rows - 1 - row) * panel[1] + bottom
        box = (x / width, y / height, (panel[0] - right) / width, (panel[1] - top - bottom) / height)
        axes.append(figure.add_axes(box))
        _dress(axes[-1])
    return figure, axes


def _room(labels: Sequence[str]) -> float:
    """Inches that the longest label takes beside an axis."""
    return 0.2 + 0.075 * max(len(_plain(label)) for label in labels)


def _dress(axis: Axes) -> None:
    axis.patch.set_visible(False)
    axis.grid(True, color=INK, alpha=_FAINT, linewidth=0.5)
    axis.set_axisbelow(True)
    axis.tick_params(which='both', labelsize=8, colors=INK, length=2)
    axis.xaxis.get_offset_text().set_color(INK)
    axis.yaxis.get_offset_text().set_color(INK)
    for side, spine in axis.spines.items():
        spine.set_visible(side in ('left', 'bottom'))
        spine.set_color(INK)


def _plain(text: str) -> str:
    """Text on one line in which matplotlib sees no formula, cut where it would leave no room for the figure."""
    text = one_line(text)
    text = text if len(text) <= _LONGEST else f'{text[: _LONGEST - 1]}…'
    return text.replace('$', r'\$')


def _svg(figure: Figure, what: str) -> str:
    """The figure as an element of the page, small, and with names of its own for what it refers to."""
    figure.patch.set_visible(False)
    settings: Any = {'svg.fonttype': 'none', 'svg.hashsalt': what, 'path.simplify': True, 'font.family': 'sans-serif'}
    file = io.StringIO()
    with matplotlib.rc_context(settings):
        figure.savefig(file, format='svg', metadata={'Date': None, 'Creator': None, 'Format': None, 'Type': None})
    text = file.getvalue()
    text = text[text.index('<svg') :]
    text = re.sub(r'<metadata>.*?</metadata>', '', text, flags=re.S)
    text = re.sub(r' id="method-(\d+)"', r' class="m\1"', text)
    text = re.sub(
        r' id="(?:figure|axes|patch|line2d|text|xtick|ytick|matplotlib\.axis|PathCollection|LineCollection)_\d+"',
        '',
        text,
    )
    text = text.replace(INK, 'currentColor')
    text = re.sub(r'font-family: [^;"]*', 'font-family: sans-serif', text)
    text = re.sub(r' (?:d|x|y|transform|width|height)="[^"]*"', _rounded, text)
    text = re.sub(r'\s*\n\s*', ' ', text)
    text = re.sub(r'width="([\d.]+)pt" height="[\d.]+pt"', _width, text, count=1)
    title = what.replace('&', '&amp;').replace('<', '&lt;').replace('"', '&quot;')
    return text.replace('<svg ', f'<svg aria-label="{title}" ', 1)


def _rounded(found: re.Match) -> str:
    """Coordinates to a hundredth of a point; texts stay as they are."""
    return re.sub(r'-?\d+\.\d+', lambda number: f'{float(number.group()):.2f}'.rstrip('0').rstrip('.'), found.group())


def _width(found: re.Match) -> str:
    """Points as the pixels of a page, at most; the height follows."""
    return f'role="img" style="width:{float(found.group(1)) * 4 / 3:.0f}px"'
