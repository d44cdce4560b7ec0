"""The figure of the cost: parameters and operations of the parts, and a training step of each method."""

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mmrepmtl.analysis.cost import Part, StepCost
from mmrepmtl.analysis.figures import INK, colour, new_figure, style


def cost_figure(parts: Sequence[Part], costs: Sequence[StepCost], title: str) -> Figure:
    """Draws bars of the parts' parameters and operations, and of the methods' training steps.

    Args:
        parts: Those of the model.
        costs: Methods by cost; may be empty.
        title: What was counted, at which size.
    """
    labels = [textwrap.fill(', '.join(cost.methods), 62) for cost in costs]
    lines = sum(label.count('\n') + 1.8 for label in labels)
    above = 1.3 + 0.27 * len(parts)
    below = 0.9 + 0.17 * lines if costs else 0
    figure = new_figure(10, above + below)
    figure.suptitle(title, fontsize=11, color=INK)
    rows = figure.subfigures(2 if costs else 1, 1, height_ratios=(above, below) if costs else None, squeeze=False)[:, 0]
    left, right = rows[0].subplots(1, 2)
    names = [part.name for part in parts]
    colours = [colour(0) if part.shared else colour(1) for part in parts]
    numbers = [part.parameters / 1e6 for part in parts]
    _bars(left, names, numbers, colours, [_number(number) for number in numbers], 'parameters', 'millions')
    flops = [part.flops / 1e9 for part in parts]
    _bars(right, names, flops, colours, [_number(number) for number in flops], 'one forward pass', 'GFLOPs per image')
    right.set_yticklabels([])
    if costs:
        axes = rows[1].subplots()
        texts = [f'{_number(cost.flops / 1e9)}  ({cost.ratio:.2f} x ew)  {cost.passes}' for cost in costs]
        step = [cost.flops / 1e9 for cost in costs]
        _bars(axes, labels, step, [colour(2)] * len(costs), texts, 'one training step', 'GFLOPs per image')
        axes.set_xlim(0, max(step) * 1.6)
        axes.tick_params(axis='y', labelsize=7)
    handles = [Patch(color=colour(number)) for number in (0, 1)]
    names = ['before Z (F_e)', 'after Z (F_h)']
    figure.legend(handles, names, loc='outside lower left', ncols=2, fontsize=8, frameon=False)
    return figure


def _number(value: float) -> str:
    return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'


def _bars(
    axes: Axes,
    names: Sequence[str],
    values: Sequence[float],
    colours: Sequence[str],
    texts: Sequence[str],
    title: str,
    unit: str,
) -> None:
    places = range(len(values))
    axes.barh(places, values, color=colours, height=0.65)
    for place, value, text in zip(places, values, texts, strict=True):
        axes.text(value + max(values) * 0.01, place, text, va='center', fontsize=8, color=INK)
    style(axes, title, unit, '', grid='x')
    axes.set_yticks(places, names, fontsize=8)
    axes.tick_params(axis='y', length=0)
    axes.invert_yaxis()
    axes.set_xlim(0, max(values) * 1.18 if max(values) else 1)
