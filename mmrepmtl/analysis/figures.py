"""The look of all figures, and how they are written: matplotlib without windows and without global state."""

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from mmrepmtl.utils.files import whole_file
from mmrepmtl.visualization.draw import check_format, write_picture

DPI = 150
Place = Literal['outside lower center', 'outside upper center']
#: Colours of methods and tasks (Okabe and Ito), told apart by colour-blind readers too.
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#7f7f7f', '#000000')
MARKERS = 'os^Dv<>p'
INK, FAINT, BAND = '#222222', '#8a8a8a', '#e8f1e4'


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, whose parts make room for each other."""
    figure = Figure((width, height), dpi=DPI, layout='constrained')
    FigureCanvasAgg(figure)
    return figure


def style(axes: Axes, title: str = '', x: str = '', y: str = '', grid: Literal['x', 'y'] = 'y') -> Axes:
    """Gives axes a title, labels with units, a faint grid behind the data, and no box around them."""
    if title:
        axes.set_title(title, fontsize=10, color=INK)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(axis=grid, color='#dddddd', linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def colour(number: int) -> str:
    """The colour of the method or task with this number; they repeat after eight."""
    return COLOURS[number % len(COLOURS)]


def draw_matrix(axes: Axes, values: Sequence[Sequence[float]], names: Sequence[str], title: str) -> None:
    """Draws cosines between tasks as a coloured matrix with its numbers; NaN is 'none'."""
    axes.set_facecolor('#eeeeee')
    axes.imshow(values, cmap='RdBu', vmin=-1, vmax=1)
    axes.set_title(title, fontsize=9, color=INK)
    axes.set_xticks(range(len(names)), names, fontsize=8, rotation=30 if len(names) > 4 else 0)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            # Not -0.00.
            text = f'{round(value, 2) + 0.0:.2f}' if value == value else 'none'
            shade = 'white' if abs(value) > 0.6 else INK
            axes.text(j, i, text, ha='center', va='center', fontsize=8 if len(names) < 7 else 6, color=shade)


def draw_legend(figure: Figure, axes: Axes, columns: int = 4, below: bool = False) -> None:
    """Draws the legend of some axes above or below the whole figure, where it hides no data."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        place: Place = 'outside lower center' if below else 'outside upper center'
        figure.legend(handles, labels, loc=place, ncols=columns, fontsize=8, frameon=False)


def write_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a figure as a picture (.png, .jpg) or, for a paper, as .pdf or .svg; all of it or nothing.

    Raises:
        ValueError: The ending is none of these.
    """
    check_figure_format(path)
    suffix, encoded = Path(path).suffix.lower(), io.BytesIO()
    if suffix in VECTORS:
        figure.savefig(encoded, format=suffix[1:])
        with whole_file(path) as file:
            file.write(encoded.getvalue())
        return
    figure.savefig(encoded, format='png')
    with Image.open(encoded) as picture:
        write_picture(path, picture.convert('RGB'))


#: Endings that a figure may have besides those of pictures.
VECTORS = ('.pdf', '.svg')


def check_figure_format(path: str | os.PathLike) -> None:
    """Raises ValueError where the ending of ``path`` is none that a figure can have."""
    if Path(path).suffix.lower() not in VECTORS:
        check_format(path)


def write_numbers(path: str | os.PathLike, numbers: Mapping[str, Any]) -> Path:
    """Writes what a figure shows as JSON beside it, under the same name; NaN becomes null. Returns the file."""
    file = Path(path).with_suffix('.json')
    with whole_file(file) as opened:
        opened.write((json.dumps(_without_nan(numbers), indent=2, allow_nan=False) + '\n').encode())
    return file


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and value != value else value
