#!/usr/bin/env python
"""Writes what the pages say of every method, between their markers, from the classes and the overlays.

python tools/misc/methods_table.py           # after a change of a method
python tools/misc/methods_table.py --check   # only compares; exit status 1 where a page is out of date
"""

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mmengine.config import Config

from mmrepmtl.apis import describe_methods
from mmrepmtl.engine.methods import build_method
from mmrepmtl.methods.aggregation import Aggregator, GramianAggregator
from mmrepmtl.methods.facts import LOG_LOSSES, SINGLE_TASK, Facts, Term
from mmrepmtl.registry import AGGREGATORS, REGULARIZERS, WEIGHTINGS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / 'configs' / '_base_' / 'methods'
MARKER = '<!-- {edge} of {name}: tools/misc/methods_table.py writes it -->'

#: {page: the names of its blocks}.
PAGES = {
    'docs/methods.md': ('logarithms', 'epochs', 'rules', 'needs', 'behaviour', 'steps'),
    'docs/training.md': ('groups',),
}
#: {page: {what follows a number of methods: the group that is counted}}.
COUNTS = {'README.md': {' ways to train': 'all', ' loss weightings and gradient methods': 'others'}}


class Method:
    """One overlay: its parts, built, and the cells of its rows.

    Args:
        name: As ``--method`` takes it.
        words: The first line of its overlay.
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
        #: The methods whose remarks hold for this one too; set by :func:`load`.
        self.like: list[str] = []

    @property
    def parts(self) -> list:
        """The weighting and the aggregator, without a plain sum beside an aggregator."""
        plain = self.aggregator is not None and type(self.weighting).__name__ == 'EqualWeighting'
        return [part for part in ([] if plain else [self.weighting]) + [self.aggregator] if part is not None]

    @property
    def facts(self) -> list[Facts]:
        """The facts of the classes: of weighting, aggregator and regularisers."""
        found = [part.facts for part in (*self.parts, *self.regularizers)]
        if None in found:
            raise ValueError(f'{self.name}: a class of it has no `facts`, which docs/methods.md shows')
        return found

    @property
    def remarks(self) -> list[Facts]:
        """The facts that speak of the whole method: of a setting in place of the plain sum that it changes."""
        if self.alone:
            return [SINGLE_TASK]
        return [LOG_LOSSES, *self.facts[1:]] if self.log else self.facts

    @property
    def terms(self) -> dict[str, tuple[float, Term]]:
        """{weight of a term: (its value, the term)} of the terms of the penalties that are not switched off."""
        terms = [(getattr(r, key), key, term) for r in self.regularizers for key, term in r.facts.terms.items()]
        return {key: (value, term) for value, key, term in terms if value}

    @property
    def group(self) -> str:
        """The row of the table of groups."""
        if self.alone:
            return 'single tasks'
        if self.regularizers:
            return 'Rep-MTL and its ablations'
        if self.aggregator is None:
            return 'loss weightings'
        return 'gradient methods' if len(self.parts) == 1 else 'both'

    def classes(self) -> str:
        names = [f'`{type(part).__name__}`' for part in [*self.parts, *self.regularizers]]
        return ', '.join([names[0] + ' of log losses' * self.log, *names[1:]])

    def paper(self) -> str:
        return '; '.join(facts.paper for facts in self.facts if facts.paper)

    def rule(self) -> str:
        if self.alone:
            return SINGLE_TASK.rule
        rule = ', then '.join(facts.rule for facts in self.facts[: len(self.parts)])
        if self.log:
            rule = rule.replace('L_t', r'\log L_t')
        terms = [f'{value:g} {term.symbol}' for value, term in self.terms.values() if term.symbol]
        if any(getattr(r, r.facts.scale, None) for r in self.regularizers if r.facts.scale):
            terms = [f's ({" + ".join(terms)})']
        return ' + '.join([rule.removesuffix('$'), *terms]) + '$' if terms else rule

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

    def remark(self, column: str) -> str:
        """A cell that no attribute tells: the remarks of the parts, or the methods that have the same."""
        if self.like:
            return 'as ' + ' and '.join(f'`{name}`' for name in self.like)
        return '; '.join(filter(None, (getattr(facts, column) for facts in self.remarks)))

    def convention(self) -> str:
        return self.remark('convention')

    def unlabelled(self) -> str:
        return self.remark('unlabelled')

    def step(self) -> str:
        return self.remarks[-1].step  # the aggregator's where there is one

    def heads(self) -> str:
        words = [] if self.parts == [self.aggregator] else ['with the loss']
        if self.aggregator is not None:
            words.append(heads_of(self.aggregator))
        remarks = [facts.heads for facts in self.remarks if facts.heads and len(words) == 1]
        return ': '.join(['; '.join(words), *remarks])

    def accumulation(self) -> str:
        if self.aggregator is None:
            word = 'equal' if all(facts.equal_parts for facts in self.remarks) else 'each'
        elif self.aggregator.level == 'representation':
            word = 'each; at parameters window'
        else:
            word = 'window' + '; at Z each' * ('representation' in self.aggregator.levels)
        remarks = [facts.accumulation for facts in self.remarks] + [
            term.accumulation for _, term in self.terms.values()
        ]
        return ': '.join([word, *filter(None, ['; '.join(filter(None, remarks))])])

    def reduced(self) -> str:
        words = ['losses'] * (self.parts != [self.aggregator]) + ['rows'] * (self.aggregator is not None)
        if isinstance(self.aggregator, GramianAggregator) and 'representation' in self.aggregator.levels:
            words.append('at Z the Gramian')
        words += [facts.reduced for facts in self.facts] + [term.reduced for _, term in self.terms.values()]
        if any('seed' in inspect.signature(type(part)).parameters for part in self.parts):
            words.append('draws')
        return '; '.join(filter(None, words))

    def refuses_log(self) -> bool:
        return any(part.loss_transform == 'own' for part in self.parts)


def heads_of(aggregator: Aggregator) -> str:
    """The gradient that the heads get beside an aggregator, by its class."""
    if aggregator.has_weights:
        return 'weighted' if aggregator.weight_heads else 'unweighted'
    own = type(aggregator).head_weights is not Aggregator.head_weights
    return 'log loss' if own else 'unweighted, always'


def load() -> list[Method]:
    """All overlays: Rep-MTL and its baselines, then the loss weightings, then the aggregators."""
    methods = [Method(name, words) for name, words in describe_methods().items()]
    rep_mtl = [f'rep-mtl{which}{term}' for which in ('', '-paper') for term in ('', '-tsr', '-csa')]
    first = [*rep_mtl, 'ew-log', 'ew', 'stl']
    methods.sort(key=lambda method: ((first + [method.name]).index(method.name), method.aggregator is not None))
    named: dict[str, str] = {}
    for method in methods:
        if (
            len(method.parts) == 1
            and not method.alone
            and named.setdefault(method.classes(), method.name) != method.name
        ):
            method.like = [named[method.classes()]]
    for method in methods:
        if len(method.parts) > 1:
            method.like = [named[f'`{type(part).__name__}`'] for part in method.parts]
    return methods


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is the header."""
    head, *others = rows
    lines = [head, ['---'] * len(head), *others]
    return '\n'.join(f'| {" | ".join(row)} |'.replace('|  |', '| |') for row in lines)


def by_method(methods: Sequence[Method], columns: Mapping[str, Callable[[Method], str]]) -> str:
    """A table with one row for each method."""
    columns = {'name': lambda method: f'`{method.name}`', **columns}
    return table([list(columns), *([cell(method) for cell in columns.values()] for method in methods)])


def grouped(methods: Sequence[Method], header: Sequence[str], group: Callable[[Method], str]) -> str:
    """A table with one row for each group, the names of its methods in the last cell."""
    groups: dict[str, list[str]] = {}
    for method in methods:
        groups.setdefault(group(method), []).append(method.name)
    return table([header, *([words, f'`{" ".join(names)}`'] for words, names in groups.items())])


def blocks(methods: Sequence[Method]) -> dict[str, str]:
    """{name of a marked block: its text}."""
    rules = {'in words': lambda method: method.words, 'rule': Method.rule, 'paper': Method.paper}
    needs = {'class': Method.classes, 'level': Method.level, 'passes': Method.passes, 'state': Method.state}
    behaviour = {
        'convention, and why': Method.convention,
        'heads': Method.heads,
        'accumulation': Method.accumulation,
        'DDP': Method.reduced,
        'a task without labels': Method.unlabelled,
    }
    return {
        'rules': by_method(methods, rules),
        'needs': by_method(methods, needs),
        'behaviour': by_method(methods, behaviour),
        'logarithms': f'`{" ".join(sorted(method.name for method in methods if method.refuses_log()))}`',
        'epochs': f'`{" ".join(sorted(method.name for method in methods if method.weighting.per_epoch))}`',
        'steps': grouped(methods, ('length of the step', 'methods'), Method.step),
        'groups': grouped(methods, ('group', '`--method`'), lambda method: method.group),
    }


def count(methods: Sequence[Method], group: str) -> int:
    """The number of methods of a group; single tasks are none that trains tasks together."""
    together = [method for method in methods if not method.alone]
    return len(together) if group == 'all' else sum(not method.regularizers for method in together)


def fill(page: str, text: str, methods: Sequence[Method]) -> str:
    """The page with new contents between its markers, and new numbers.

    Raises:
        ValueError: If a pair of markers, or a number, is not there exactly once.
    """
    contents = blocks(methods)
    for name in PAGES.get(page, ()):
        begin, end = (MARKER.format(edge=edge, name=name) for edge in ('begin', 'end'))
        block = f'{begin}\n\n{contents[name]}\n\n{end}'
        pattern = f'{re.escape(begin)}.*?{re.escape(end)}'
        text, found = re.subn(pattern, lambda _, block=block: block, text, flags=re.S)
        if found != 1:
            raise ValueError(f'{page}: expected one block {begin} ... {end}, found {found}')
    for words, group in COUNTS.get(page, {}).items():
        text, found = re.subn(rf'\d+(?={re.escape(words)})', str(count(methods, group)), text)
        if found != 1:
            raise ValueError(f'{page}: expected one "NUMBER{words}", found {found}')
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Writes or compares the pages; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--check', action='store_true', help='compare only; exit status 1 if a page is out of date')
    arguments = parser.parse_args(argv)
    methods, stale = load(), []
    for page in (*PAGES, *COUNTS):
        text = (ROOT / page).read_text(encoding='utf-8')
        new = fill(page, text, methods)
        if new != text:
            stale.append(page)
            if not arguments.check:
                (ROOT / page).write_text(new, encoding='utf-8')
    if not (arguments.check and stale):
        return 0
    print(f'{", ".join(stale)}: out of date, run python tools/misc/methods_table.py', file=sys.stderr)
    return 1


if __name__ == '__main__':
    sys.exit(main())
