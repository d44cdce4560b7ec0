"""``table.md`` and ``table.tex``: methods as rows, metrics grouped by task, in the form of the published tables."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mmrepmtl.comparison.results_file import CONSTANT, STL
from mmrepmtl.comparison.statistics import ALPHA, LEVEL, Estimate
from mmrepmtl.comparison.summary import Summary
from mmrepmtl.evaluation.metric_table import AVERAGE

DELTAS = {'task': 'Delta p, tasks', 'metric': 'Delta p, metrics'}
RANK, SEEDS = 'mean rank', 'seeds'
PRELIMINARY = 'These are preliminary, since runs or numbers are missing.'

_TEX = {
    '\\': r'\textbackslash{}',
    '{': r'\{',
    '}': r'\}',
    '&': r'\&',
    '%': r'\%',
    '$': r'\$',
    '#': r'\#',
    '_': r'\_',
    '~': r'\textasciitilde{}',
    '^': r'\textasciicircum{}',
    '<': r'\textless{}',
    '>': r'\textgreater{}',
    '|': r'\textbar{}',
    '"': r'\textquotedbl{}',
    '[': '{[}',
    ']': '{]}',
}


class Cell(NamedTuple):
    """A number as text with its place among the methods: 1 the best, 2 the second, 0 neither."""

    text: str
    place: int = 0
    value: float | None = None


@dataclass(frozen=True)
class Column:
    """A column: the task that it belongs to ('' for none), its name, and whether higher is better (None: no matter)."""

    task: str
    name: str
    higher: bool | None

    @property
    def arrow(self) -> str:
        """The direction as a sign."""
        return '' if self.higher is None else '↑' if self.higher else '↓'


def columns_of(summary: Summary) -> list[Column]:
    """The columns of the table, in order."""
    found = [
        Column(task, key.rpartition('/')[2], summary.directions[key])
        for task, keys in summary.tasks.items()
        for key in keys
    ]
    if summary.baseline is not None:
        found += [Column('', name, True) for name in DELTAS.values()]
    return [*found, Column('', RANK, False), Column('', SEEDS, None)]


def cells_of(summary: Summary) -> dict[str, list[Cell]]:
    """{label: its cells}, in the order of :func:`columns_of`. The best and second are those among the methods."""
    values: list[dict[str, Estimate | None]] = [
        {label: own.metrics.get(key) for label, own in summary.methods.items()} for key in _keys(summary)
    ]
    if summary.baseline is not None:
        for kind in DELTAS:
            values.append({label: own.delta(kind) for label, own in summary.methods.items()})
    values.append(
        {label: None if own.rank is None else Estimate(own.rank, None, 1) for label, own in summary.methods.items()}
    )
    columns = columns_of(summary)
    cells: dict[str, list[Cell]] = {label: [] for label in summary.methods}
    for column, found in zip(columns, values, strict=False):
        whole = [label for label in summary.competitors if column.name == RANK or summary.complete(found[label])]
        places = _places({label: found[label] for label in whole}, bool(column.higher))
        digits = 2 if not column.task else digits_of([value.mean for value in found.values() if value is not None])
        for label, value in found.items():
            seeds = 0 if label == CONSTANT or column.name == RANK else len(summary.seeds)
            text = format_estimate(value, digits, signed=column.name in DELTAS.values(), seeds=seeds)
            if value is not None and label == summary.baseline and column.name in DELTAS.values():
                text = '0'
            cells[label].append(Cell(text, places.get(label, 0), None if value is None else value.mean))
    for label, own in summary.methods.items():
        count = len(own.seeds)
        cells[label].append(Cell('-' if label == CONSTANT else str(count), 0, count))
    return cells


def definitions(summary: Summary) -> list[str]:
    """Sentences that say how each number is made where the literature has more than one way."""
    found = [
        'Each number is the mean over seeds ± the sample standard deviation (divisor n - 1); of one seed there is no '
        'deviation.',
        f'Best and second are those among the multi-task methods, not of the rows {STL} and {CONSTANT}.',
    ]
    own = [summary.methods[label] for label in summary.methods if label != CONSTANT]
    if not all(summary.complete(value) for one in own for value in one.metrics.values()):
        found.append(
            f'"n=" beside a number: it is the mean of so many of the {len(summary.seeds)} seeds, the others are '
            'missing or not finite; it has no place, and its method no mean rank.'
        )
    if summary.baseline is not None:
        what = (
            'the single-task baseline of the same seed'
            if summary.baseline == STL
            else f'{summary.baseline} (equal weighting) of the same seed, because there is no single-task baseline'
        )
        rest = [key for key in summary.keys if key not in summary.counting]
        left = sorted({key.rpartition('/')[2] for key in rest if not key.startswith(f'{AVERAGE}/')})
        left += ['averages over tasks'] if any(key.startswith(f'{AVERAGE}/') for key in rest) else []
        uncounted = f' Not counted: {", ".join(left)}.' if left else ''
        found.append(
            f'Delta p is the mean relative change in percent against {what}, then averaged over seeds; positive is '
            'better. "tasks": mean over tasks of the mean over the metrics of a task, the definition of the Rep-MTL '
            f'paper; "metrics": mean over all metrics.{uncounted}'
        )
    found.append(
        "Mean rank: mean over the metrics that count of the rank of a method's mean among the multi-task methods, 1 "
        'being the best.'
    )
    selections = sorted(summary.selections)
    found.append(f'Checkpoint: {"; ".join(selections)}.' if selections else 'Checkpoint: not told.')
    if CONSTANT in summary.methods:
        found.append(f'{CONSTANT}: for each metric the best constant prediction of the training set.')
    return found


def verdicts(summary: Summary) -> list[str]:
    """The paired comparisons as sentences, those with equal weighting of log losses first."""
    found = summary.differences()
    order = [name for name in ('ew-log', 'ew', STL) if name in found]
    return [entry.verdict for name in order for entry in found[name]]


def markdown_table(summary: Summary, published: Sequence[tuple[str, str]] = ()) -> str:
    """The page ``table.md``.

    Args:
        summary: The comparison.
        published: (heading, Markdown) of what follows the table.
    """
    columns = columns_of(summary)
    head = [
        'method',
        *(
            f'{md(f"{column.task}/{column.name}" if column.task else column.name)} {column.arrow}'.strip()
            for column in columns
        ),
    ]
    lines = [md_row(head), md_row(['---', *['---:'] * len(columns)])]
    mark: Mapping[int, Callable[[str], str]] = {0: str, 1: '**{}**'.format, 2: '<u>{}</u>'.format}
    for label, cells in cells_of(summary).items():
        lines.append(md_row([md(label), *(mark[cell.place](cell.text) for cell in cells)]))
    parts = [
        '# Comparison',
        '\n'.join(lines),
        'Best **bold**, second <u>underlined</u>. ' + md(' '.join(definitions(summary))),
    ]
    parts.append(_md_list('## Missing', summary.notes) if summary.notes else 'No run is missing.')
    sentences = verdicts(summary)
    if sentences:
        rule = (
            'Paired t tests over seeds; Delta p is the mean over tasks. "No clear difference" is said unless p is '
            f"below {ALPHA:g} after Holm's correction over all methods that are compared with one reference, those "
            'still to come among them. The intervals of all of them hold together with '
            f'{100 * LEVEL:g} % (Bonferroni), and so are a little wider: one may hold 0 where p is below the level.'
        )
        if summary.preliminary:
            rule += f' {PRELIMINARY}'
        parts += [_md_list('## Differences', sentences), rule]
    parts += [f'## {heading}\n\n{text}' for heading, text in published]
    return '\n\n'.join(parts) + '\n'


def latex_table(summary: Summary) -> str:
    """``table.tex``: a table for ``\\usepackage{booktabs}``, in a file that can be included with ``\\input``."""
    columns = columns_of(summary)
    groups: list[list[Column]] = []
    for column in columns:
        if column.task and groups and groups[-1][0].task == column.task:
            groups[-1].append(column)
        else:
            groups.append([column])
    head, rules, start = [''], [], 2
    for group in groups:
        task = _tex(group[0].task)
        head.append(rf'\multicolumn{{{len(group)}}}{{c}}{{{task}}}' if task else '')
        if task:
            rules.append(rf'\cmidrule(lr){{{start}-{start + len(group) - 1}}}')
        start += len(group)
    arrows = {None: '', True: r' $\uparrow$', False: r' $\downarrow$'}
    names = ['method', *(f'{_tex_name(column.name)}{arrows[column.higher]}' for column in columns)]
    mark: Mapping[int, Callable[[str], str]] = {0: str, 1: r'\textbf{{{}}}'.format, 2: r'\underline{{{}}}'.format}
    body, baselines = [], [label for label in summary.methods if label in (STL, CONSTANT)]
    for number, (label, cells) in enumerate(cells_of(summary).items()):
        if number and number == len(baselines):
            body.append(r'\midrule')
        body.append(' & '.join([_tex(label), *(mark[cell.place](_tex_cell(cell.text)) for cell in cells)]) + r' \\')
    caption = ' '.join([*definitions(summary), *(f'Missing: {note}.' for note in summary.notes)])
    return '\n'.join(
        [
            r'% \usepackage{booktabs,graphicx,textcomp} in the preamble',
            r'\begin{table}[t]',
            r'\centering',
            rf'\caption{{{_tex_text(caption)}}}',
            r'\resizebox{\textwidth}{!}{%',
            rf'\begin{{tabular}}{{l{"r" * len(columns)}}}',
            r'\toprule',
            ' & '.join(head) + r' \\',
            ' '.join(rules),
            ' & '.join(names) + r' \\',
            r'\midrule',
            *body,
            r'\bottomrule',
            r'\end{tabular}}',
            r'\end{table}',
            '',
        ]
    )


def format_estimate(value: Estimate | None, digits: int = 2, signed: bool = False, seeds: int = 0) -> str:
    """Mean ± deviation as text, with '(n=2)' if it has less than ``seeds`` seeds; '-' where there is none."""
    if value is None:
        return '-'
    return _number(value, digits, signed) + (f' (n={value.count})' if value.count < seeds else '')


def _keys(summary: Summary) -> list[str]:
    return [key for keys in summary.tasks.values() for key in keys]


def _places(found: Mapping[str, Estimate | None], higher: bool) -> dict[str, int]:
    """{method: 1 or 2}; methods that are equal share a place, and have none if all are."""
    means = {label: value.mean for label, value in found.items() if value is not None}
    if len(set(means.values())) < 2:
        return {}
    best, second, *_ = sorted(set(means.values()), reverse=higher)
    order = {best: 1, second: 2}
    return {label: order[mean] for label, mean in means.items() if mean in order}


def digits_of(means: Sequence[float]) -> int:
    """Decimals of a column, such that its largest number has four digits, as in the published tables."""
    largest = max((abs(mean) for mean in means), default=1.0)
    return next((digits for digits, limit in ((2, 10), (3, 1), (4, 0.1), (5, 0.01)) if largest >= limit), 6)


def _number(value: Estimate, digits: int, signed: bool) -> str:
    text = f'{value.mean:{"+" if signed else ""}.{digits}f}'
    return text if value.deviation is None else f'{text} ± {value.deviation:.{digits}f}'


def md(text: str) -> str:
    """Text that Markdown shows as it is: no cell, tag, link or line ends in it."""
    text = re.sub(r'\s+', ' ', text)
    text = text.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')
    return re.sub(r'([\\`*_\[\]|#~])', r'\\\1', text)


def md_row(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return f'| {" | ".join(cells)} |'


def _md_list(heading: str, entries: Sequence[str]) -> str:
    return '\n'.join([heading, '', *(f'* {md(entry)}' for entry in entries)])


def _tex(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return ''.join(_TEX.get(char, char) for char in re.sub(r'\s+', ' ', text))


def _tex_text(text: str) -> str:
    return _tex(text).replace('±', r'$\pm$').replace('Delta p', r'$\Delta p$')


def _tex_cell(text: str) -> str:
    return text.replace('±', r'$\pm$').replace('-', '$-$') if text != '-' else '--'


def _tex_name(name: str) -> str:
    return _tex(name).replace('Delta p', r'$\Delta p$')
