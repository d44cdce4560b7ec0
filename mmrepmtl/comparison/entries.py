"""The entries of ``--methods``: names, two names, config files, and the values of a sweep."""

import argparse
import difflib
import inspect
import itertools
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction

from mmrepmtl.apis.config import available_methods
from mmrepmtl.apis.config_file import find_config
from mmrepmtl.comparison.results_file import CONSTANT, STL
from mmrepmtl.registry import AGGREGATORS, OPTIM_WRAPPERS, REGULARIZERS, WEIGHTINGS
from mmrepmtl.utils.config_types import find_type

FORMS = 'NAME, NAME+NAME, CONFIG.py, each with :key=value[,key=value] or :key=value|value for several'


@dataclass(frozen=True)
class Entry:
    """One contestant.

    Attributes:
        label: As typed, safe for a file name.
        method: Overlay of ``--method``; None: the config's own method.
        regularizer: Overlay of ``--regularizer``.
        config: The config, as given.
        sweep: {key as typed: its value as text}.
        options: {dotted key: value as text}: the same for ``--cfg-options``.
        group: The entry as typed that this is one value of; '' if that has no other.
    """

    label: str
    method: str | None
    regularizer: str | None
    config: str
    sweep: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    group: str = ''

    @property
    def method_name(self) -> str:
        """The method without the values of a sweep, for the results."""
        name = self.label.partition(':')[0] if self.method is None else self.method
        return f'{name}+{self.regularizer}' if self.regularizer else name


def parse_entries(texts: Sequence[str], config: str) -> list[Entry]:
    """Reads ``--methods``; values of sweeps become entries of their own.

    Args:
        texts: The entries as typed.
        config: The config of the comparison.

    Returns:
        In the order given; their keys are not looked up yet (:func:`resolve_options`).

    Raises:
        ValueError: An unknown method, a damaged sweep, or two entries of one label; names the entry.
    """
    known = available_methods(config)
    entries = [entry for text in texts for entry in _parse_entry(text, config, known)]
    labels: dict[str, str] = {}
    for entry in entries:
        if entry.label in labels:
            raise ValueError(f'--methods: {entry.label!r} is there twice; leave out one of the two')
        labels[entry.label] = entry.label
        _check_own_name(entry, {*known, *available_methods()})
    return entries


def _check_own_name(entry: Entry, methods: Collection[str]) -> None:
    """The table knows its baselines and the published methods by name: a config file may not pass for one."""
    name = entry.label.partition(':')[0]
    if name == CONSTANT:
        raise ValueError(f'--methods: {CONSTANT!r} is the name of the best constants; rename the config file')
    if entry.method is None and set(name.split('+')) <= set(methods):
        raise ValueError(
            f'--methods: {entry.config!r} would be {name!r} in the table, which is the name of a method; rename the '
            'config file'
        )


def _parse_entry(text: str, config: str, known: Sequence[str]) -> Iterator[Entry]:
    name, colon, values = text.partition(':')
    if colon and not values:
        raise ValueError(f'--methods: {text!r} has no key=value after the colon; entries are {FORMS}')
    entry = _named(name, text, config, known)
    if entry.method == STL and (colon or entry.regularizer):
        raise ValueError(
            f'--methods: {text!r}: the single-task baseline takes no values and no regulariser; what holds for all '
            'runs goes into --cfg-options'
        )
    if not colon:
        yield entry
        return
    choices = _parse_values(values, text)
    several = any(len(options) > 1 for options in choices.values())
    for combination in itertools.product(*choices.values()):
        sweep = dict(zip(choices, combination, strict=True))
        written = ','.join(f'{key}={value}' for key, value in sweep.items())
        yield replace(entry, label=_safe(f'{entry.label}:{written}'), sweep=sweep, group=text if several else '')


def _named(name: str, text: str, config: str, known: Sequence[str]) -> Entry:
    if name.endswith('.py') or '/' in name:
        try:
            return Entry(_safe(Path(name).stem), None, None, str(find_config(name)))
        except FileNotFoundError as error:
            raise ValueError(f'--methods: {text!r}: {error}') from error
    method, plus, regularizer = name.partition('+')
    for part in (method, regularizer) if plus else (method,):
        if part not in known:
            near = difflib.get_close_matches(part, known, n=3, cutoff=0.5) or known
            raise ValueError(
                f'--methods: {text!r}: there is no method {part!r}; near it: {", ".join(near)}; entries are {FORMS}'
            )
    return Entry(_safe(name), method, regularizer or None, config)


def _parse_values(values: str, text: str) -> dict[str, list[str]]:
    """{key: its values}; commas and bars inside brackets or quotes belong to a value."""
    choices: dict[str, list[str]] = {}
    for part in _split(values, ','):
        key, equals, listed = part.partition('=')
        options = _split(listed, '|')
        if not equals or not re.fullmatch(r'[A-Za-z_][\w.-]*', key) or not all(options):
            raise ValueError(
                f'--methods: {text!r}: {part!r} is not key=value; several values are key=0.1|0.3 (in quotes, for the '
                'shell), several keys are joined by commas'
            )
        if key in choices:
            raise ValueError(f'--methods: {text!r}: {key} is there twice; several values are {key}=0.1|0.3')
        if len(set(options)) < len(options):
            raise ValueError(f'--methods: {text!r}: {part!r} has a value twice')
        choices[key] = options
    return choices


def _split(text: str, separator: str) -> list[str]:
    parts, depth, quote = [''], 0, ''
    for character in text:
        if quote:
            quote = '' if character == quote else quote
        elif character in '\'"':
            quote = character
        elif character in '([{':
            depth += 1
        elif character in ')]}':
            depth -= 1
        elif character == separator and depth == 0:
            parts.append('')
            continue
        parts[-1] += character
    return parts


def _safe(label: str) -> str:
    return re.sub(r'[^\w.+=,:-]', '_', label)


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """``--cfg-options`` as every command reads them: {dotted key: value}.

    Raises:
        ValueError: A text is not key=value.
    """
    for text in texts:
        if not text.partition('=')[0] or '=' not in text:
            raise ValueError(f'--cfg-options: {text!r} is not key=value')
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    return parser.parse_args(['--cfg-options', *texts]).cfg_options if texts else {}


def resolve_options(entry: Entry, cfg: Config) -> Entry:
    """Finds the place of each key of a sweep.

    A key without a dot is an argument of one of the method's components: its regularisers, aggregator, weighting, the
    optim wrapper itself, or else of the optimizer. A key with a dot is one of the config.

    Args:
        entry: The entry.
        cfg: Its config, without the sweep.

    Raises:
        ValueError: A key is in no component, in two, or in no part of the config; names what there is.
    """
    options = {
        (_check_dotted(key, entry, cfg) if '.' in key else _place_of(key, entry, cfg)): value
        for key, value in entry.sweep.items()
    }
    return replace(entry, options=options)


def _place_of(key: str, entry: Entry, cfg: Config) -> str:
    wrapper = cfg.get('optim_wrapper') or {}
    parts = [
        *((f'regularizers.{i}', part, REGULARIZERS) for i, part in enumerate(wrapper.get('regularizers') or [])),
        *((name, wrapper.get(name), kinds) for name, kinds in (('aggregator', AGGREGATORS), ('weighting', WEIGHTINGS))),
    ]
    arguments = {
        f'optim_wrapper.{name}': _arguments(part['type'], kinds)
        for name, part, kinds in parts
        if isinstance(part, Mapping)
    }
    own = set(_arguments(wrapper.get('type'), OPTIM_WRAPPERS)) - {
        'optimizer',
        'regularizers',
        'aggregator',
        'weighting',
    }
    optimizer = wrapper.get('optimizer')
    layers: list[Mapping[str, Collection[str]]] = [
        arguments,
        {'optim_wrapper': own},
        {'optim_wrapper.optimizer': set(optimizer) - {'type'} if isinstance(optimizer, Mapping) else set()},
    ]
    for layer in layers:
        places = [f'{place}.{key}' for place, names in layer.items() if key in names]
        if len(places) > 1:
            raise ValueError(f'--methods: {entry.label!r}: {key} may be {" or ".join(places)}; give one of these')
        if places:
            return places[0]
    there = sorted({name for layer in layers for names in layer.values() for name in names})
    raise ValueError(
        f'--methods: {entry.label!r}: no component of {entry.method_name} takes {key!r}; they take {", ".join(there)}; '
        'keys of other parts are written out, such as optim_wrapper.optimizer.lr'
    )


def _arguments(kind: Any, registry: Any) -> list[str]:
    """The arguments of a class, those that it passes on to its bases among them."""
    found = find_type(kind, registry)
    if found is None:
        return []
    names: list[str] = []
    for cls in inspect.getmro(found) if inspect.isclass(found) else [found]:
        try:
            parameters = inspect.signature(cls).parameters.values()
        except (TypeError, ValueError):
            break
        names += [one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
        if not any(one.kind is one.VAR_KEYWORD for one in parameters):
            break
    return list(dict.fromkeys(names))


def _check_dotted(key: str, entry: Entry, cfg: Config) -> str:
    """A typing error must not become a new key that nothing reads."""
    place: Any = cfg
    for name in key.split('.')[:-1]:
        if isinstance(place, Sequence) and not isinstance(place, str) and name.isdecimal() and int(name) < len(place):
            place = place[int(name)]
        elif isinstance(place, Mapping | Config) and place.get(name) is not None:
            place = place.get(name)
        else:
            raise ValueError(f'--methods: {entry.label!r}: the config has no {name!r} for {key}')
    last = key.rpartition('.')[2]
    if isinstance(place, Mapping) and last not in place and 'type' not in place:
        raise ValueError(f'--methods: {entry.label!r}: {key} is not in the config, only {", ".join(map(str, place))}')
    return key


def sweep_text(entry: Entry) -> str:
    """The sweep as JSON with the values as the config gets them."""
    return json.dumps(parse_options([f'{key}={value}' for key, value in entry.sweep.items()]), default=str)
