"""The figure of the power-law exponents: every layer on the left, the means of encoder and heads on the right."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from mmrepmtl.analysis.figures import BAND, FAINT, MARKERS, colour, draw_legend, new_figure, style
from mmrepmtl.analysis.spectrum import OVER, WELL_TRAINED, Spectrum, summarise

_TICKS = (1, 2, 3, 4, 6, 10, 20, 50, 100)


def spectrum_figure(spectra: Mapping[str, Sequence[Spectrum]]) -> Figure:
    """Draws alpha of each layer (mean over the runs of a label) and its mean over encoder, neck and each head.

    Args:
        spectra: {label: one for each of its runs}.
    """
    figure = new_figure(11, 4.6)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for axes in (left, right):
        axes.set_yscale('log')
        axes.axhspan(*WELL_TRAINED, color=BAND, zorder=0)
        axes.axhline(OVER, color=FAINT, linestyle='--', linewidth=0.8)
    _draw_layers(left, spectra)
    _draw_means(right, spectra)
    top = max(axes.get_ylim()[1] for axes in (left, right))
    bottom = min(axes.get_ylim()[0] for axes in (left, right))
    for axes in (left, right):
        axes.set_ylim(bottom, top)
        axes.yaxis.set_major_locator(FixedLocator(_TICKS))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(ScalarFormatter())
    draw_legend(figure, left, min(len(spectra), 5))
    figure.supxlabel(
        f'green: {WELL_TRAINED[0]:g} to {WELL_TRAINED[1]:g}, well trained; above the dashed line ({OVER:g}): '
        'over-parameterised or barely trained',
        fontsize=8,
        color=FAINT,
    )
    return figure


def _draw_layers(axes: Axes, spectra: Mapping[str, Sequence[Spectrum]]) -> None:
    groups: dict[str, list[str]] = {}
    for runs in spectra.values():
        for run in runs:
            for layer in run.layers:
                names = groups.setdefault(layer.group, [])
                if layer.name not in names:
                    names.append(layer.name)
    total = sum(map(len, groups.values()))
    # A group of few layers gets room for its name.
    widths = {group: max(len(names), 0.11 * total) for group, names in groups.items()}
    place: dict[str, float] = {}
    starts: dict[str, float] = {}
    start = 0.0
    for group, names in groups.items():
        starts[group] = start
        step = widths[group] / len(names)
        place |= {name: start + (index + 0.5) * step for index, name in enumerate(names)}
        start += widths[group]
    for number, (label, runs) in enumerate(spectra.items()):
        alphas: dict[str, list[float]] = {}
        for run in runs:
            for layer in run.layers:
                alphas.setdefault(layer.name, []).append(layer.alpha)
        for names in groups.values():
            drawn = [name for name in names if name in alphas]
            axes.plot(
                [place[name] for name in drawn],
                [sum(alphas[name]) / len(alphas[name]) for name in drawn],
                color=colour(number),
                marker=MARKERS[number % len(MARKERS)],
                markersize=3.5,
                linewidth=0.9,
                label=label if names is next(iter(groups.values())) else None,
            )
    for own in list(starts.values())[1:]:
        axes.axvline(own, color='#bbbbbb', linewidth=0.8)
    ticks = [starts[group] + widths[group] / 2 for group in groups]
    style(axes, 'every layer', 'layers, in the order of the model', 'power-law exponent alpha')
    axes.set_xticks(ticks, [f'{group}\n({len(names)})' for group, names in groups.items()], fontsize=8)
    axes.tick_params(axis='x', length=0)
    axes.set_xlim(0, start)


def _draw_means(axes: Axes, spectra: Mapping[str, Sequence[Spectrum]]) -> None:
    means = summarise(spectra)
    groups = list(dict.fromkeys(group for own in means.values() for group in own))
    width = 0.8 / len(means)
    for number, own in enumerate(means.values()):
        places = [i + (number - (len(means) - 1) / 2) * width for i, group in enumerate(groups) if group in own]
        found = [own[group] for group in groups if group in own]
        spread = [0 if math.isnan(f['std']) else f['std'] for f in found]
        axes.errorbar(
            places,
            [f['mean'] for f in found],
            spread if any(spread) else None,
            fmt=MARKERS[number % len(MARKERS)],
            color=colour(number),
            markersize=6,
            elinewidth=0.9,
            capsize=3,
        )
        if len(means) * len(groups) <= 16:
            for place, f, more in zip(places, found, spread, strict=True):
                axes.annotate(
                    f'{f["mean"]:.1f}',
                    (place, f['mean'] + more),
                    (0, 5),
                    textcoords='offset points',
                    ha='center',
                    fontsize=7,
                )
    for number in range(1, len(groups)):
        axes.axvline(number - 0.5, color='#bbbbbb', linewidth=0.8)
    axes.set_xlim(-0.5, len(groups) - 0.5)
    several = any(f['runs'] > 1 for own in means.values() for f in own.values())
    style(axes, f'mean over layers{", ± deviation over runs" if several else ""}', '', '')
    axes.set_xticks(range(len(groups)), groups, fontsize=8)
    axes.tick_params(axis='x', length=0)
