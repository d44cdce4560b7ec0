"""The figures of the conflict between tasks: matrices and norms of models, and their course over training."""

import itertools
from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from mmrepmtl.analysis.conflict import Conflict
from mmrepmtl.analysis.figures import COLOURS, INK, colour, draw_legend, draw_matrix, new_figure, style


def conflict_figure(found: Mapping[str, Conflict], note: str = '') -> Figure:
    """Draws, in one row for each model, the cosines at Z (batch, samples) and at the parameters, and the norms.

    Args:
        found: {label: conflict}; all of the same tasks.
        note: Line at the bottom: what the gradients are of.
    """
    at_z = next(iter(found.values())).z_TT is not None
    columns = 4 if at_z else 2
    figure = new_figure(2.9 * columns, 2.9 * len(found) + 0.5)
    if note:
        figure.supxlabel(note, fontsize=8, color='#666666')
    rows = figure.subfigures(len(found), 1, squeeze=False)[:, 0]
    for row, (label, own) in zip(rows, found.items(), strict=True):
        row.suptitle(label, fontsize=10, color=INK, fontweight='bold')
        axes = row.subplots(1, columns)
        if own.z_TT is not None and own.samples_TT is not None:
            draw_matrix(axes[0], own.z_TT.tolist(), own.tasks, f'cosine at Z,\nmean of {_count(own.batches, "batch")}')
            draw_matrix(
                axes[1], own.samples_TT.tolist(), own.tasks, f'cosine at Z,\nmean of {_count(own.samples, "sample")}'
            )
        draw_matrix(axes[-2], own.parameters_TT.tolist(), own.tasks, 'cosine at the\nshared parameters')
        _draw_norms(axes[-1], own)
    return figure


def _count(number: int, noun: str) -> str:
    plural = f'{noun}es' if noun.endswith('ch') else f'{noun}s'
    return f'{number} {noun if number == 1 else plural}'


def _draw_norms(axes: Axes, own: Conflict) -> None:
    """Norms over their largest: those at Z and at the parameters have units of their own."""
    bars = {'parameters': own.parameters_norm_T} if own.z_norm_T is None else {}
    if own.z_norm_T is not None:
        bars = {'Z': own.z_norm_T, 'parameters': own.parameters_norm_T}
    width = 0.8 / len(bars)
    for number, (name, norm_T) in enumerate(bars.items()):
        places = [t + (number - (len(bars) - 1) / 2) * width for t in range(len(own.tasks))]
        largest = float(norm_T.max()) or 1.0
        values = (norm_T / largest).tolist()
        axes.bar(places, values, width * 0.92, color=colour(number), label=f'at {name}')
        for place, value, norm in zip(places, values, norm_T.tolist(), strict=True):
            axes.text(place, value + 0.02, f'{norm:.2g}', ha='center', fontsize=6, color=INK)
    style(axes, '', '', 'norm / largest')
    axes.set_title('norms of the gradients\n(numbers: the norms)', fontsize=9, color=INK)
    axes.set_xticks(range(len(own.tasks)), own.tasks, fontsize=8)
    axes.tick_params(axis='x', length=0)
    axes.set_ylim(0, 1.45)
    axes.legend(fontsize=7, frameon=False, ncols=2, loc='upper center')


def course_figure(found: Mapping[str, Sequence[tuple[int, Conflict]]], unit: str) -> Figure:
    """Draws cosines of each pair of tasks and norms of each task over training.

    Args:
        found: {label: (epoch or iteration, conflict) in order}; all of the same tasks.
        unit: 'epoch' or 'iteration'.
    """
    first = next(iter(found.values()))[0][1]
    places = ['z', 'parameters'] if first.z_TT is not None else ['parameters']
    figure = new_figure(5.2 * len(places), 5.8)
    grid = figure.subplots(2, len(places), squeeze=False)
    pairs = list(itertools.combinations(range(len(first.tasks)), 2))
    styles = ['-', '--', ':', '-.']
    for column, place in enumerate(places):
        where = 'Z' if place == 'z' else 'the shared parameters'
        upper, lower = grid[0][column], grid[1][column]
        for number, (label, course) in enumerate(found.items()):
            line = dict(linestyle=styles[number % len(styles)], marker='o', markersize=3, linewidth=1.2)
            suffix = f' ({label})' if len(found) > 1 else ''
            moments = [moment for moment, _ in course]
            cosines = torch.stack([getattr(own, f'{place}_TT') for _, own in course])
            norms = torch.stack([getattr(own, f'{place}_norm_T') for _, own in course])
            for index, (i, j) in enumerate(pairs):
                name = f'{first.tasks[i]} / {first.tasks[j]}{suffix}'
                upper.plot(moments, cosines[:, i, j].tolist(), color=COLOURS[index % 8], label=name, **line)
            for t, task in enumerate(first.tasks):
                lower.plot(moments, norms[:, t].tolist(), color=COLOURS[(3 + t) % 8], label=task + suffix, **line)
        upper.axhline(0, color='#999999', linewidth=0.8)
        style(upper, f'at {where}', '', 'cosine of two tasks' if column == 0 else '')
        style(lower, '', unit, "norm of the task's gradient" if column == 0 else '')
        lower.set_yscale('log')
        plain = FuncFormatter(lambda value, _: f'{value:.3g}')
        lower.yaxis.set_major_formatter(plain)
        lower.yaxis.set_minor_formatter(plain)
        lower.tick_params(which='both', labelsize=8)
        upper.xaxis.get_major_locator().set_params(integer=True)
        lower.xaxis.get_major_locator().set_params(integer=True)
    draw_legend(figure, grid[0][0], len(pairs) if len(pairs) < 5 else 4)
    draw_legend(figure, grid[1][0], len(first.tasks), below=True)
    return figure
