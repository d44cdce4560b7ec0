#!/usr/bin/env python
"""Writes what docs/methods.md says of every method, between its markers, from the classes and the overlays.

python tools/misc/methods_table.py           # after a change of a method
python tools/misc/methods_table.py --check   # only compares; exit status 1 where the page is out of date
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mmengine.config import Config

from mmrepmtl.apis import describe_methods
from mmrepmtl.engine.methods import build_method
from mmrepmtl.methods.facts import Facts
from mmrepmtl.registry import AGGREGATORS, REGULARIZERS, WEIGHTINGS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs' / 'methods.md'
FOLDER = ROOT / 'configs' / '_base_' / 'methods'
MARKER = '<!-- {edge} of {name}: tools/misc/methods_table.py writes it -->'

#: A regulariser joins a weighting, whose rule it continues.
PENALTY = Facts(paper='arXiv 2507.21049, ICCV 2025, Eq. 3-10', rule='', state='count of steps')
TERMS = dict(lambda_tsr=r'L_{\mathrm{tsr}}', lambda_csa=r'L_{\mathrm{csa}}')


class Method:
    """One overlay: its parts, built, and the cells of its rows.

    Args:
        name: As ``--method`` takes it.
        words: What its overlay says in one line.
    """

    def __init__(self, name: str, words: str) -> None:
        overlay = Config.fromfile(FOLDER / f'{name}.py')
        settings = overlay.optim_wrapper
        self.name, self.words = name, words
        self.alone = overlay.get('single_task', False)
        self.log = settings.loss_transform == 'log'
        self.weighting = build_method(settings.weighting, WEIGHTINGS)
        self.aggregator = build_method(settings.aggregator, AGGREGATORS)
        self.regularizers = [build_method(regularizer, REGULARIZERS) for regularizer in settings.regularizers]

    @property
    def parts(self) -> list:
        """The weighting and the aggregator, without a plain sum beside an aggregator."""
        plain = self.aggregator is not None and type(self.weighting).__name__ == 'EqualWeighting'
        return [part for part in ([] if plain else [self.weighting]) + [self.aggregator] if part is not None]

    @property
    def facts(self) -> list[Facts]:
        found = [part.facts for part in self.parts] + [PENALTY] * len(self.regularizers)
        if None in found:
            raise ValueError(f'{self.name}: a class of it has no `facts`, which docs/methods.md shows')
        return found

    def classes(self) -> str:
        names = [f'`{type(part).__name__}`' for part in [*self.parts, *self.regularizers]]
        return ', '.join([names[0] + ' of log losses' * self.log, *names[1:]])

    def paper(self) -> str:
        return '; '.join(facts.paper for facts in self.facts if facts.paper)

    def rule(self) -> str:
        rule = ', then '.join(part.facts.rule for part in self.parts)
        if self.log:
            rule = rule.replace('L_t', r'\log L_t')
        for regularizer in self.regularizers:
            terms = [
                f'{getattr(regularizer, key):g} {term}' for key, term in TERMS.items() if getattr(regularizer, key)
            ]
            rule = ' + '.join([rule.removesuffix('$'), *terms]) + '$'
        return '$L_t$ of one task' if self.alone else rule

    def level(self) -> str:
        if self.aggregator is None:
            return 'loss'
        default = self.aggregator.level
        return ', '.join([default, *(level for level in self.aggregator.levels if level != default)])

    def passes(self) -> str:
        if self.aggregator is None:
            passes = '3 + 1' if self.regularizers else '1 + 1'
        elif self.aggregator.level == 'representation':
            passes = '1 + 1' + '; at parameters 1 + T' * ('parameter' in self.aggregator.levels)
        else:
            batches = self.aggregator.num_batches
            passes = '1 + T' if batches == 1 else f'{batches} x (1 + T), and {batches} forward passes'
        if self.alone:
            return f'{passes} of one head, in T runs'
        work = ['one more forward pass after the step'] * self.weighting.second_look
        return ', and '.join([passes, *work, *(facts.work for facts in self.facts if facts.work)])

    def state(self) -> str:
        return '; '.join(facts.state for facts in self.facts if facts.state != 'none') or 'none'

    def refuses_log(self) -> bool:
        return any(part.loss_transform == 'own' for part in self.parts)


def table(methods: Sequence[Method], columns: dict[str, Callable[[Method], str]]) -> str:
    """A Markdown table with one row for each method."""
    rows = [list(columns), ['---'] * len(columns)]
    rows += [[cell(method) for cell in columns.values()] for method in methods]
    return '\n'.join(f'| {" | ".join(row)} |'.replace('|  |', '| |') for row in rows)


def blocks() -> dict[str, str]:
    """{name of a marked block of the page: its text}."""
    methods = [Method(name, words) for name, words in describe_methods().items()]
    # Rep-MTL and its baselines, then the loss weightings, then the aggregators.
    first = ['rep-mtl', 'rep-mtl-tsr', 'rep-mtl-csa', 'ew-log', 'ew', 'stl']
    methods.sort(key=lambda method: ((first + [method.name]).index(method.name), method.aggregator is not None))
    name = {'name': lambda method: f'`{method.name}`'}
    rules = name | {'in words': lambda method: method.words, 'rule': Method.rule, 'paper': Method.paper}
    needs = name | {'class': Method.classes, 'level': Method.level, 'passes': Method.passes, 'state': Method.state}
    refusing = ' '.join(sorted(method.name for method in methods if method.refuses_log()))
    return {'rules': table(methods, rules), 'needs': table(methods, needs), 'logarithms': f'`{refusing}`'}


def fill(text: str, contents: dict[str, str]) -> str:
    """The page with new contents between its markers.

    Raises:
        ValueError: If a pair of markers is not there exactly once.
    """
    for name, content in contents.items():
        begin, end = (MARKER.format(edge=edge, name=name) for edge in ('begin', 'end'))
        text, count = re.subn(
            f'{re.escape(begin)}.*?{re.escape(end)}',
            lambda _, block=f'{begin}\n\n{content}\n\n{end}': block,
            text,
            flags=re.S,
        )
        if count != 1:
            raise ValueError(f'{PAGE.name}: expected one block {begin} ... {end}, found {count}')
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Writes or compares the page; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--check', action='store_true', help='compare only; exit status 1 if the page is out of date')
    arguments = parser.parse_args(argv)
    text = PAGE.read_text(encoding='utf-8')
    new = fill(text, blocks())
    if arguments.check and new != text:
        print(f'{PAGE.relative_to(ROOT)} is out of date: run python tools/misc/methods_table.py', file=sys.stderr)
        return 1
    if new != text:
        PAGE.write_text(new, encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
