"""``report.html``: one page that needs no network and no other file."""

from collections.abc import Sequence
from html import escape

from mmrepmtl.comparison.report import sections
from mmrepmtl.comparison.report.assets import CSS, JS
from mmrepmtl.comparison.report.figures import style_of
from mmrepmtl.comparison.report.gather import Material
from mmrepmtl.comparison.results_file import CONSTANT

#: Nothing may be fetched, whatever a label or a log says.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def render(material: Material) -> str:
    """The page as HTML."""
    parts = [
        ('differences', 'Differences', sections.differences(material)),
        ('table', 'Table', sections.table(material)),
        ('published', 'Beside the paper', sections.published(material)),
        ('curves', 'Training', sections.training(material)),
        ('saliency', 'TSR, CSA and the gradient of the penalty', sections.saliency(material)),
        ('conflict', 'Conflict between tasks', sections.conflict(material)),
        ('cost', 'Time and memory', sections.cost(material)),
        ('samples', 'Predictions', sections.samples(material)),
        ('about', 'How this was made', sections.about(material)),
    ]
    if material.chosen is not None:
        parts.insert(2, ('chosen', 'Values of sweeps, on the validation split', sections.chosen(material)))
    links = ''.join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in parts)
    body = ''.join(f'<section id="{name}"><h2>{escape(heading)}</h2>{text}</section>' for name, heading, text in parts)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f'<title>{escape(material.title)}: comparison</title><style>{CSS}</style></head><body>'
        f'<h1>{escape(material.title)}</h1>{_lead(material)}<nav>{links}</nav>{_methods(material.labels)}{body}'
        f'<script>{JS}</script></body></html>\n'
    )


def _lead(material: Material) -> str:
    summary = material.summary
    runs = sum(len(own.seeds) for own in summary.methods.values())
    configs = ', '.join(dict.fromkeys(row.config for row in material.rows)) or 'no config'
    text = f'{len([x for x in summary.methods if x != CONSTANT])} methods, {runs} finished runs of {configs}'
    missing = sections.missing('Missing', summary.notes) if summary.notes else ''
    return f'<p class="note">{escape(text)}</p>{missing}'


def _methods(labels: Sequence[str]) -> str:
    """The legend of all figures; a box hides a method in them."""
    entries = []
    for index, label in enumerate(labels):
        if label == CONSTANT:
            continue
        colour, dashes = style_of(index)
        pattern = {'-': '', '--': ' stroke-dasharray="5 3"', ':': ' stroke-dasharray="2 2"'}[dashes]
        entries.append(
            f'<label><input type="checkbox" value="{index}" checked> <svg width="22" height="8" aria-hidden="true">'
            f'<path d="M0 4H22" stroke="{colour}" stroke-width="3"{pattern}/></svg>{escape(label)}</label>'
        )
    return f'<div class="methods" aria-label="methods in the figures">{"".join(entries)}</div>'
