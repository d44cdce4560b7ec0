"""The sections of the report, each as HTML; all text from outside is escaped here."""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from mmrepmtl.comparison.report.figures import Panels, draw_bars, draw_curves, draw_forest
from mmrepmtl.comparison.report.gather import Material
from mmrepmtl.comparison.report.history import curves
from mmrepmtl.comparison.report.published import published_table
from mmrepmtl.comparison.results_file import AND, CONSTANT, STL
from mmrepmtl.comparison.statistics import LEVEL
from mmrepmtl.comparison.summary import Summary
from mmrepmtl.comparison.tables import PRELIMINARY, cells_of, columns_of, definitions

#: Names in the logs: losses as the model gives them, and what the engine measures of the gradients of the tasks at Z.
LOSSES, COSINES, NORMS = 'raw/', 'task_gradients/cos/', 'task_gradients/norm/'
_TERMS = {
    'tsr': 'TSR, unweighted',
    'csa': 'CSA, unweighted',
    'entropy': 'entropy / ln T of the ownership',
    'grad_ratio': 'gradient at Z: penalty / tasks',
}


def differences(material: Material) -> str:
    """The paired comparisons: a figure and its words."""
    groups = material.summary.differences()
    if not any(entry.values for entries in groups.values() for entry in entries):
        return missing('Not here', ['there are not two methods with a Delta p of one seed'])
    baseline = material.summary.baseline
    parts = [draw_forest(groups, material.labels)]
    parts.append(
        _note(
            'Small dots: one seed each. Ring: their mean, filled where the difference is clear. Thick: the '
            f'{100 * LEVEL:g} % interval of this comparison alone; thin: those of all methods of the panel together '
            "(Bonferroni). Clear is what Holm's p says, which is a little less strict than the thin interval. "
            f'Delta p is against {baseline}, mean over tasks; the other panels show differences of it, paired by seed. '
            'An interval assumes normal differences, and is wide for few seeds; one beyond the panel is cut.'
        )
    )
    if material.summary.preliminary:
        parts.append(_note(PRELIMINARY))
    order = [name for name in ('ew-log', 'ew', STL) if name in groups]
    by_name = {name: [entry.verdict for entry in groups[name]] for name in order}
    for number, (name, sentences) in enumerate(by_name.items()):
        opened = ' open' if number == 0 else ''
        parts.append(f'<details{opened}><summary>Against {escape(name)}</summary>{_list(sentences)}</details>')
    return ''.join(parts)


def table(material: Material) -> str:
    """The table of all metrics, which sorts by a click on a heading."""
    texts = _note(' '.join(definitions(material.summary)))
    return f'{_note("Best bold, second underlined. Click a heading to sort.")}{_table(material.summary)}{texts}'


def chosen(material: Material) -> str:
    """The numbers by which values of a sweep were chosen."""
    text = 'These decided which value of a sweep is reported; they are of no other use.'
    return _note(text) + ('' if material.chosen is None else _table(material.chosen))


def _table(summary: Summary) -> str:
    columns, cells = columns_of(summary), cells_of(summary)
    groups: list[tuple[str, int]] = []
    for column in columns:
        if column.task and groups and groups[-1][0] == column.task:
            groups[-1] = (column.task, groups[-1][1] + 1)
        else:
            groups.append((column.task, 1))
    upper = ''.join(
        f'<th colspan="{count}"{" class=task" if task else ""}>{escape(task)}</th>' for task, count in groups
    )
    heads = _head(0, 'method', 'ascending', text=True)
    heads += ''.join(
        _head(number, f'{column.name} {column.arrow}'.strip(), 'ascending' if column.higher is False else 'descending')
        for number, column in enumerate(columns, 1)
    )
    body = []
    for label, own in cells.items():
        row = [f'<td>{escape(label)}</td>']
        for cell in own:
            place = {1: ' class="first"', 2: ' class="second"'}.get(cell.place, '')
            value = '' if cell.value is None else f'{cell.value!r}'
            row.append(f'<td data-value="{value}"{place}>{escape(cell.text)}</td>')
        body.append(f'<tr{" class=base" if label in (STL, CONSTANT) else ""}>{"".join(row)}</tr>')
    return (
        f'<div class="scroll"><table class="sortable"><thead><tr><th></th>{upper}</tr><tr>{heads}</tr></thead>'
        f'<tbody>{"".join(body)}</tbody></table></div>'
    )


def _head(number: int, name: str, first: str, text: bool = False) -> str:
    kind = ' data-text' if text else ''
    return (
        f'<th data-column="{number}" data-first="{first}" aria-sort="none"{kind}><button>{escape(name)}</button></th>'
    )


def published(material: Material) -> str:
    """The published rows beside ours, and how the set-ups differ."""
    absent, found = _absent(material, 'published'), published_table(material)
    if found is None:
        return absent or missing('Not here', ['no method of this comparison is in the table of the paper'])
    head = ''.join(f'<th>{escape(name)}</th>' for name in found.head)
    rows = ''.join(_cells(cells, 'base' if theirs else '') for theirs, cells in found.rows)
    facts = ''.join(_cells(fact[:3], 'differs' if fact[3] else '') for fact in found.facts)
    return (
        f'{absent}<p>{escape(found.told)}</p><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f'<tbody>{rows}</tbody></table></div>{_note("Published: " + found.source)}<h3>Set-up</h3>'
        f'<table><thead><tr><th></th><th>paper</th><th>here</th></tr></thead><tbody>{facts}</tbody></table>'
    )


def training(material: Material) -> str:
    """Losses and validation metrics of each task over training."""
    parts = []
    train, val = curves(material.histories, 'train'), curves(material.histories, 'val')
    losses = {name.removeprefix(LOSSES): found for name, found in train.items() if name.startswith(LOSSES)}
    counting = {key: val[key] for key in material.summary.keys if key in val}
    if losses:
        parts.append('<h3>Loss of each task</h3>' + draw_curves(losses, material.labels, 'iteration', log=True))
    if counting:
        parts.append('<h3>Validation</h3>' + draw_curves(counting, material.labels, 'epoch'))
    if not losses and not counting:
        parts.append(missing('Not here', material.absent.get('curves') or ['no run has logged a loss or a validation']))
    else:
        parts.append(_absent(material, 'curves'))
        parts.append(
            _note('Means over the seeds that have logged, at the steps that all of them have; long curves are thinned.')
        )
    return ''.join(parts)


def saliency(material: Material) -> str:
    """The terms of Rep-MTL and how large their gradient is."""
    train = curves(material.histories, 'train')
    panels = {text: found for name, text in _TERMS.items() for key, found in train.items() if key == f'rep_mtl/{name}'}
    shares = {
        f'share of {key.removeprefix("rep_mtl/share/")} in the ownership': found
        for key, found in train.items()
        if key.startswith('rep_mtl/share/')
    }
    if not panels:
        return missing('Not here', ['no run with Rep-MTL has logged its terms'])
    ratio = panels.pop(_TERMS['grad_ratio'], None)
    drawn = draw_curves(panels | shares, material.labels, 'iteration') if panels else ''
    if ratio is None:
        return drawn + missing('Not here', ['the gradient ratio (diagnostics_interval is 0, or above the iterations)'])
    return drawn + draw_curves({_TERMS['grad_ratio']: ratio}, material.labels, 'iteration', log=True)


def conflict(material: Material) -> str:
    """Cosines between the gradients of the tasks at Z, and their norms."""
    train = curves(material.histories, 'train')
    cosines: Panels = {
        f'cosine {key.removeprefix(COSINES)}': found for key, found in train.items() if key.startswith(COSINES)
    }
    norms: Panels = {f'norm {key.removeprefix(NORMS)}': found for key, found in train.items() if key.startswith(NORMS)}
    if not cosines and not norms:
        reason = 'no run has measured the gradients of the tasks at Z; the hook TaskGradientsHook does'
        return missing('Not here', [reason])
    parts = [_note("Gradients of each task's loss, as the model returns it, at the shared representation Z.")]
    if cosines:
        parts.append(draw_curves(cosines, material.labels, 'iteration'))
    if norms:
        parts.append(draw_curves(norms, material.labels, 'iteration', log=True))
    return ''.join(parts)


def cost(material: Material) -> str:
    """Seconds per step, memory and time of training."""
    methods = material.summary.methods
    panels: dict[str, Mapping[str, float]] = {}
    for title, name in (
        ('seconds per step (median)', 'step_seconds'),
        ('peak memory, MiB', 'peak_memory_mib'),
        ('training, minutes', 'train_seconds'),
    ):
        found = {
            label: value
            for label, own in methods.items()
            if label != CONSTANT and (value := getattr(own, name)) is not None
        }
        if found:
            panels[title] = {label: value / 60 for label, value in found.items()} if 'minutes' in title else found
    if not panels:
        return missing('Not here', ['no run says how long its steps took or how much memory it held'])
    text = (
        'Means over seeds. Runs that shared a machine have slowed each other: times of runs side by side say little. '
        'Memory is the GPU’s where there is one, else that of the process.'
    )
    return draw_bars(panels, material.labels) + _note(text)


def samples(material: Material) -> str:
    """The same test samples, the truth and the predictions of all methods."""
    absent = _absent(material, 'samples')
    if not material.samples:
        return absent or missing('Not here', ['there is no folder of a run, so there is no model to predict with'])
    seeds = sorted({seed for seed, _ in material.samples.values()})
    parts = [absent, _note(f'Seed {", ".join(map(str, seeds))}; samples spread evenly over the test set, not chosen.')]
    # The single-task baseline has its samples task by task, so the order is that of the others.
    shared_first = sorted(material.samples.items(), key=lambda entry: entry[0] == STL)
    numbers = dict.fromkeys(number for _, (_, drawn) in shared_first for number in drawn)
    order = list(material.summary.tasks)
    for number in numbers:
        drawn = {label: found[number] for label, (_, found) in material.samples.items() if number in found}
        parts.append(_sample(number, drawn, order))
    return ''.join(parts)


def _sample(number: str, drawn: Mapping[str, Mapping], order: Sequence[str]) -> str:
    there = {task for own in drawn.values() for task in own['tasks']}
    tasks = [task for task in order if task in there] + sorted(there - set(order))
    first = next(iter(drawn.values()))
    found = {task: next(own['tasks'][task] for own in drawn.values() if task in own['tasks']) for task in tasks}
    names = ''.join(f'<div class="head">{escape(label)}</div>' for label in drawn)
    rows = [f'<div></div><div class="head">truth</div>{names}<div></div>']
    for task in tasks:
        cells = [f'<div class="name head">{escape(task)}</div>']
        cells.append(f'<div>{_picture(found[task]["truth"], f"truth of {task}", "unlabelled")}</div>')
        for label, own in drawn.items():
            uri = own['tasks'].get(task, {}).get('prediction')
            cells.append(f'<div>{_picture(uri, f"{label}: {task}", "-")}</div>')
        rows.append(f'{"".join(cells)}<div class="legend">{_legend(found[task]["legend"])}</div>')
    columns = f'max-content repeat({1 + len(drawn)}, max-content) max-content'
    return (
        f'<h3>Sample {escape(number)}: {escape(str(first["name"]))}</h3>'
        f'{_picture(first["image"], "input", "", "input")}'
        f'<div class="samples" style="grid-template-columns: {columns}">{"".join(rows)}</div>'
    )


def _picture(uri: str | list[str] | None, what: str, otherwise: str, kind: str = '') -> str:
    if isinstance(uri, list):
        return f'<div class="words">{"<br>".join(escape(str(line)) for line in uri)}</div>'
    if uri is None or not uri.startswith('data:image/'):
        return f'<span class="note">{escape(otherwise)}</span>'
    name = f' class="{kind}"' if kind else ''
    return f'<img{name} src="{escape(uri)}" alt="{escape(what)}">'


def _legend(legend: Mapping) -> str:
    """Names of classes beside their colours, or a text."""
    if 'classes' not in legend:
        return f'<span class="note">{escape(str(legend.get("text", "")))}</span>'
    swatches = []
    for name, colour in legend['classes']:
        red, green, blue = (int(channel) for channel in colour)
        swatches.append(
            f'<span class="swatch"><i style="background:rgb({red},{green},{blue})"></i>{escape(str(name))}</span>'
        )
    return ''.join(swatches)


def about(material: Material) -> str:
    """Config hashes, commits, versions and checkpoints of the runs."""
    rows = []
    for label in material.summary.methods:
        own = [row for row in material.rows if row.label == label and row.split == 'test']
        if label == CONSTANT:
            continue
        facts = [
            ', '.join(dict.fromkeys(value for row in own if (value := getattr(row, name)) not in ('', '{}')))
            for name in ('method', 'sweep', 'config_hash', 'commit', 'selection', 'finished')
        ]
        seeds = ', '.join(str(seed) for seed in material.summary.methods[label].seeds)
        rows.append(_cells([label, *facts[:2], seeds, *facts[2:5], facts[5].split(', ')[-1]], kind='text'))
    head = ('label', 'method', 'sweep', 'seeds', 'config hash', 'commit', 'checkpoint', 'last finished')
    found: dict[str, dict[str, None]] = {}
    for row in material.rows:
        for name, value in json.loads(row.versions).items():
            found.setdefault(str(name), {}).update(dict.fromkeys(str(value).split(AND)))
    versions = '; '.join(f'{name} {AND.join(values)}' for name, values in found.items())
    mixed = [name for name, values in found.items() if len(values) > 1]
    warning = missing('Not equal in all runs', mixed) if mixed else ''
    heads = ''.join(f'<th class="text">{name}</th>' for name in head)
    body = f'<thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody>'
    return f'{warning}<div class="scroll"><table>{body}</table></div>{_note(versions)}'


def missing(heading: str, entries: Iterable[str]) -> str:
    """A box that says what is not there."""
    return f'<div class="missing"><b>{escape(heading)}</b>{_list(entries)}</div>'


def _absent(material: Material, part: str) -> str:
    return missing('Not here', material.absent[part]) if part in material.absent else ''


def _list(entries: Iterable[str]) -> str:
    return f'<ul>{"".join(f"<li>{escape(entry)}</li>" for entry in entries)}</ul>'


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _cells(texts: Sequence[str], row: str = '', kind: str = '') -> str:
    name = f' class="{row}"' if row else ''
    cell = f' class="{kind}"' if kind else ''
    return f'<tr{name}>{"".join(f"<td{cell}>{escape(str(text))}</td>" for text in texts)}</tr>'
