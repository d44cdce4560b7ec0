"""The figures of the ablation, of sweeps and of training times."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from mmrepmtl.analysis.figures import FAINT, INK, MARKERS, colour, draw_legend, new_figure, style
from mmrepmtl.analysis.sweeps import Score


def ablation_figure(
    scores: Sequence[Score], title: str, yardstick: str, published: Mapping[str, float] | None = None
) -> Figure:
    """Draws Delta p of {none, TSR, CSA, both}: mean, deviation, and each seed as a small point.

    Args:
        scores: As :func:`mmrepmtl.analysis.sweeps.ablation` returns them.
        title: The config.
        yardstick: Name of what Delta p is against.
        published: {name of a score: the paper's}, drawn beside ours.
    """
    figure = new_figure(5.2, 3.8)
    axes = style(figure.subplots(), title, '', f'Delta p against {yardstick}, %')
    axes.axhline(0, color=FAINT, linewidth=0.8)
    for place, score in enumerate(scores):
        _draw_seeds(axes, place - 0.09, score, colour(0))
        axes.errorbar(place, score.mean, _bar(score), fmt='o', color=colour(0), markersize=6, elinewidth=1, capsize=4)
        axes.annotate(f'{score.mean:+.2f}', (place, score.mean), (8, 5), textcoords='offset points', fontsize=8)
    if published:
        places = [place - 0.22 for place, score in enumerate(scores) if score.name in published]
        values = [published[score.name] for score in scores if score.name in published]
        axes.plot(places, values, 'D', color=INK, markerfacecolor='white', markersize=5, label='the paper')
        axes.errorbar([], [], [], fmt='o', color=colour(0), markersize=6, capsize=4, label='ours')
        draw_legend(figure, axes)
    axes.set_xticks(range(len(scores)), [f'{score.name}\n({_seeds(score)})' for score in scores], fontsize=9)
    axes.set_xlim(-0.5, len(scores) - 0.3)
    axes.tick_params(axis='x', length=0)
    _explain(figure, scores)
    return figure


def sensitivity_figure(
    sweeps: Mapping[str, Mapping[str, Sequence[Score]]], titles: Mapping[str, str], yardstick: str
) -> Figure:
    """Draws Delta p over the values of each parameter, in one panel each, with the deviation over seeds.

    Args:
        sweeps: {parameter: {method: its points}}.
        titles: {parameter: name and unit for the axis}.
        yardstick: Name of what Delta p is against.
    """
    columns = min(len(sweeps), 3)
    rows = math.ceil(len(sweeps) / columns)
    figure = new_figure(4.1 * columns, 3.2 * rows + 0.4)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    methods = list(dict.fromkeys(method for own in sweeps.values() for method in own))
    labelled: set[str] = set()
    for number, (key, own) in enumerate(sweeps.items()):
        axes = grid[number // columns][number % columns]
        axes.axhline(0, color=FAINT, linewidth=0.8)
        for method, scores in own.items():
            index = methods.index(method)
            values = [score.x for score in scores]
            for score in scores:
                _draw_seeds(axes, score.x, score, colour(index))
            axes.errorbar(
                values,
                [score.mean for score in scores],
                [_bar(score) or 0 for score in scores],
                marker=MARKERS[index % len(MARKERS)],
                markersize=5,
                linewidth=1.2,
                elinewidth=0.9,
                capsize=3,
                color=colour(index),
                label=None if method in labelled else method,
            )
            labelled.add(method)
        _draw_values(axes, sorted({score.x for scores in own.values() for score in scores}))
        style(axes, '', titles.get(key, key), f'Delta p against {yardstick}, %' if number % columns == 0 else '')
    for spare in range(len(sweeps), rows * columns):
        grid[spare // columns][spare % columns].set_visible(False)
    _explain(figure, [score for own in sweeps.values() for scores in own.values() for score in scores])
    handles = [(axes, handle) for row in grid for axes in row for handle in axes.get_legend_handles_labels()[0]]
    if len(handles) == 1:
        draw_legend(figure, handles[0][0])
    elif handles:
        figure.legend(
            [handle for _, handle in handles],
            [label for row in grid for axes in row for label in axes.get_legend_handles_labels()[1]],
            loc='outside upper center',
            ncols=4,
            fontsize=8,
            frameon=False,
        )
    return figure


def time_figure(scores: Sequence[Score], title: str, reference: str) -> Figure:
    """Draws training seconds per epoch as bars, fastest first, with the ratio to one of them.

    Args:
        scores: As :func:`mmrepmtl.analysis.sweeps.epoch_times` returns them.
        title: The config.
        reference: The label that ratios are made with, if it is among them.
    """
    figure = new_figure(7, 1.1 + 0.28 * len(scores))
    axes = figure.subplots()
    base = next((score.mean for score in scores if score.name == reference), None)
    places = range(len(scores))
    axes.barh(
        places,
        [score.mean for score in scores],
        xerr=[_bar(score) or 0 for score in scores],
        color=[colour(1) if score.name.startswith('rep-mtl') else colour(0) for score in scores],
        height=0.68,
        error_kw=dict(elinewidth=0.9, capsize=2),
    )
    longest = max(score.mean + (_bar(score) or 0) for score in scores)
    for place, score in zip(places, scores, strict=True):
        text = f'{score.mean:.3g} s' + (f'  ({score.mean / base:.2f} x {reference})' if base else '')
        end = score.mean + (_bar(score) or 0)
        axes.text(end + 0.012 * longest, place, text, va='center', fontsize=8, color=INK)
    style(axes, title, 'training time per epoch, s', '', grid='x')
    axes.set_yticks(places, [score.name for score in scores], fontsize=8)
    axes.tick_params(axis='y', length=0)
    axes.invert_yaxis()
    axes.set_xlim(0, longest * 1.32)
    return figure


def _explain(figure: Figure, scores: Sequence[Score]) -> None:
    if any(len(score.by_seed) > 1 for score in scores):
        figure.supxlabel('bars: deviation over seeds; small points: the seeds', fontsize=8, color=FAINT)


def _bar(score: Score) -> float | None:
    """The deviation as the length of an error bar; None of one seed."""
    return None if math.isnan(score.std) else score.std


def _draw_seeds(axes: Axes, x: float, score: Score, shade: str) -> None:
    if len(score.by_seed) > 1:
        axes.plot([x] * len(score.by_seed), list(score.by_seed.values()), '.', color=shade, alpha=0.35, markersize=5)


def _draw_values(axes: Axes, values: Sequence[float]) -> None:
    """Ticks at the values that were tried; a logarithmic axis where they span more than a factor of ten."""
    if values[0] > 0 and values[-1] / values[0] > 25:
        axes.set_xscale('log')
    shown = values if len(values) <= 7 else values[::2]
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))


def _seeds(score: Score) -> str:
    return f'{len(score.by_seed)} seed{"" if len(score.by_seed) == 1 else "s"}'
