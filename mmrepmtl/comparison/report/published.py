"""The published rows beside ours, for the page and for ``table.md``."""

from dataclasses import dataclass

from mmrepmtl.comparison.report.gather import Material
from mmrepmtl.comparison.results_file import STL
from mmrepmtl.comparison.tables import digits_of, format_estimate, md, md_row


@dataclass(frozen=True)
class PublishedTable:
    """Published and own rows in turn.

    Attributes:
        head: Names of the columns.
        rows: (whether it is a published row, its cells).
        told: One sentence about what the two have in common and what not.
        source: The papers.
        facts: (setting, published, ours, whether they differ).
    """

    head: list[str]
    rows: list[tuple[bool, list[str]]]
    told: str
    source: str
    facts: list[tuple[str, str, str, bool]]


def published_table(material: Material) -> PublishedTable | None:
    """The table, None if no method of the comparison is published for this data set."""
    if not material.published:
        return None
    summary = material.summary
    keys = [key for key in summary.keys if any(key in row.metrics for row in material.published.values())]
    digits = {
        key: digits_of([own.metrics[key].mean for own in summary.methods.values() if key in own.metrics])
        for key in keys
    }
    rows, seeds = [], len(summary.seeds)
    for label, row in material.published.items():
        own = summary.methods[label]
        theirs = [f'{row.metrics[key]:g}' if key in row.metrics else '-' for key in keys]
        delta = '-' if row.delta_task is None else f'{row.delta_task:+.2f}'
        delta += '' if row.deviation is None else f' ± {row.deviation:.2f}'
        ours = [format_estimate(own.metrics.get(key), digits[key], seeds=seeds) for key in keys]
        rows.append((True, [f'{row.name} (paper)', *theirs, delta]))
        rows.append((False, [f'{label} (ours)', *ours, format_estimate(own.delta(), signed=True, seeds=seeds)]))
    different = [fact.what for fact in material.facts if fact.differs]
    told = (
        f'The set-ups differ in {", ".join(different)}: the numbers cannot be compared with each other, only the order '
        'of the methods.'
        if different
        else 'The set-ups differ in nothing that is listed here.'
    )
    if summary.baseline != STL:
        told += (
            f' Our Delta p is against {summary.baseline or "nothing"}, the published one against single-task models.'
        )
    return PublishedTable(
        head=['method', *(f'{key} {"↑" if summary.directions[key] else "↓"}' for key in keys), 'Delta p, tasks ↑'],
        rows=rows,
        told=told,
        source='; '.join(dict.fromkeys(row.source for row in material.published.values())),
        facts=[
            (fact.what, fact.published, 'not told by the config' if fact.ours is None else fact.ours, fact.differs)
            for fact in material.facts
        ],
    )


def published_lines(material: Material) -> list[tuple[str, str]]:
    """(heading, Markdown) for ``table.md``; nothing where nothing is published."""
    table = published_table(material)
    if table is None:
        return []
    lines = [md_row([md(name) for name in table.head]), md_row(['---', *['---:'] * (len(table.head) - 1)])]
    lines += [md_row([md(cell) for cell in cells]) for _, cells in table.rows]
    setup = [md_row(['setting', 'paper', 'here', 'differs']), md_row(['---'] * 4)]
    setup += [
        md_row([md(what), md(theirs), md(ours), 'yes' if other else '']) for what, theirs, ours, other in table.facts
    ]
    parts = [md(table.told), '\n'.join(lines), md(f'Published: {table.source}'), '\n'.join(setup)]
    return [('Beside the paper', '\n\n'.join(parts))]
