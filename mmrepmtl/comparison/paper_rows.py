"""The published numbers of a benchmark, and how their set-up differs from that of a config."""

import csv
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mmrepmtl.methods.rep_mtl import RepMTL
from mmrepmtl.registry import REGULARIZERS
from mmrepmtl.utils.config_types import is_type

FOLDER = Path(__file__).parent / 'paper'
BENCHMARKS = {
    'NYUv2Dataset': 'nyuv2',
    'CityscapesDataset': 'cityscapes',
    'Office31Dataset': 'office31',
    'OfficeHomeDataset': 'office_home',
}
"""{class of a data set: its benchmark}; each benchmark is a file of numbers in this package."""

PENALTY = ('target_ratio', 'through', 'lambda_tsr', 'lambda_csa', 'temperature')
"""The arguments of Rep-MTL that decide which method it is."""
NOT_STATED = 'not stated'
"""A setting that the paper leaves open."""

_NOT_METRICS = ('method', 'avg_std', 'delta_p_task', 'delta_p_task_std', 'delta_p_metric')
_NAMES = {'normal_mean': 'mean', 'normal_median': 'median'}
_AUGMENTING = re.compile(r'Random|PhotoMetric|Jitter')


@dataclass(frozen=True)
class Published:
    """A row of a published table.

    Attributes:
        name: The method as the table names it.
        metrics: {metric of ours: published value}.
        delta_task, deviation: Delta p as printed (mean over tasks), and its standard deviation over seeds.
        delta_metric: Mean over metrics, as computed from the row; None where the table has none.
        source: Paper and table.
    """

    name: str
    metrics: Mapping[str, float]
    delta_task: float | None
    deviation: float | None
    delta_metric: float | None
    source: str


class Fact(NamedTuple):
    """One setting of the published runs beside ours.

    Attributes:
        what: The setting.
        published: Its value, several joined by ' or ', or ``NOT_STATED``.
        ours: As text; None where no config tells it.
        values: The values in this text, where several entries have their own.
    """

    what: str
    published: str
    ours: str | None
    values: tuple[str, ...] = ()

    @property
    def differs(self) -> bool:
        """Whether a config tells another value."""
        if self.ours is None or self.published == NOT_STATED:
            return False
        return any(value not in self.published.split(' or ') for value in self.values or (self.ours,))


def benchmark_of(cfg: Mapping[str, Any]) -> str | None:
    """The benchmark that a config trains on, None if nothing is published for it here."""
    loader = cfg.get('train_dataloader') or {}
    for key, value in _walk(loader.get('dataset')):
        if key == 'type':
            name = getattr(value, '__name__', str(value)).rpartition('.')[2]
            if name in BENCHMARKS:
                return BENCHMARKS[name]
    return None


def published_rows(benchmark: str, keys: Sequence[str]) -> dict[str, Published]:
    """The published rows of a benchmark, by our names of the methods.

    Args:
        benchmark: One of the values of ``BENCHMARKS``.
        keys: Our metrics; columns of the table that are none of them are left out.

    Returns:
        {overlay of ours: row}, in the order of the table; equal weighting of log losses and the two terms of Rep-MTL
        alone have their Delta p only.

    Raises:
        ValueError: There is no such benchmark.
    """
    if benchmark not in BENCHMARKS.values():
        raise ValueError(f'published_rows: no numbers of {benchmark!r}, only of {", ".join(BENCHMARKS.values())}')
    entries, source = _read(f'{benchmark}.csv')
    found = {}
    for entry in entries:
        columns = {name: _number(text) for name, text in entry.items() if name not in _NOT_METRICS}
        metrics = {key: value for key in keys if (value := columns.get(_column(key, columns) or '')) is not None}
        found[entry['method'].lower()] = Published(
            entry['method'],
            metrics,
            _number(entry['delta_p_task']),
            _number(entry['delta_p_task_std']),
            _number(entry.get('delta_p_metric')),
            source,
        )
    return found | _delta_only(benchmark)


def published_row(rows: Mapping[str, Published], method: str) -> Published | None:
    """The published row of a method of ours, None if there is none.

    Args:
        rows: Of :func:`published_rows`.
        method: The overlay. Every overlay of Rep-MTL with both terms is compared with the published Rep-MTL, and
            :func:`setup_facts` says how its penalty differs. One term alone is published at fixed weights only, so
            ``rep-mtl-paper-tsr`` has a row and ``rep-mtl-tsr``, whose strength is held, has none.
    """
    if method in rows:
        return rows[method]
    return rows['rep-mtl'] if method.startswith('rep-mtl') and not method.endswith(('-tsr', '-csa')) else None


def setup_facts(
    benchmark: str,
    cfg: Mapping[str, Any],
    seeds: int,
    methods: Mapping[str, Mapping[str, Any] | None] | None = None,
) -> list[Fact]:
    """The settings of the published runs beside those of a config.

    Args:
        benchmark: One of the values of ``BENCHMARKS``.
        cfg: The config of the comparison.
        seeds: How many seeds were run.
        methods: {label: settings of its own config, None where they are not known} of the entries with a published
            row, for the facts about the penalty; without it they are those of ``cfg``. They are left out where none
            has Rep-MTL.
    """
    ours = setup_of(cfg) | dict(seeds=str(seeds))
    methods = {'': cfg} if methods is None else methods
    penalties = {label: penalty_of(settings or {}) for label, settings in methods.items()}
    unknown = [label for label, settings in methods.items() if settings is None and label.startswith('rep-mtl')]
    facts = []
    for entry in _read('setup.csv')[0]:
        what, published = entry['what'], entry['value']
        if entry['benchmark'] != benchmark:
            continue
        if what not in PENALTY:
            facts.append(Fact(what, published, ours.get(what)))
            continue
        found: dict[str, list[str]] = {}
        for label, penalty in penalties.items():
            if penalty and not _is_other_term(what, label):
                found.setdefault(penalty[what], []).append(label)
        if found or unknown:
            facts.append(_penalty_fact(what, published, found, unknown))
    return facts


def _is_other_term(what: str, label: str) -> bool:
    """Whether it is the weight of the term that an ablation leaves out, as its published row does."""
    suffix = {'lambda_csa': '-tsr', 'lambda_tsr': '-csa'}.get(what)
    return suffix is not None and label.partition(':')[0].endswith(suffix)


def _penalty_fact(what: str, published: str, found: Mapping[str, Sequence[str]], unknown: Sequence[str]) -> Fact:
    """An argument of the penalty; the values with their entries, where there are several."""
    shown = {**found, 'not known': unknown} if unknown else found
    if not found:
        return Fact(what, published, None)
    if len(shown) == 1:
        return Fact(what, published, next(iter(found)))
    text = '; '.join(f'{value} ({", ".join(labels)})' for value, labels in shown.items())
    return Fact(what, published, text, tuple(found))


def penalty_of(cfg: Mapping[str, Any]) -> dict[str, str]:
    """The arguments ``PENALTY`` of a config's Rep-MTL as text, its defaults among them; empty without Rep-MTL.

    Args:
        cfg: A config, or the settings of an entry in ``comparison.json``.
    """
    parts = (cfg.get('optim_wrapper') or {}).get('regularizers') or []
    own = [part for part in parts if isinstance(part, Mapping) and is_type(part.get('type'), REGULARIZERS, RepMTL)]
    if not own:
        return {}
    defaults = inspect.signature(RepMTL).parameters
    return {
        name: ' and '.join(dict.fromkeys(_text(part.get(name, defaults[name].default)) for part in own))
        for name in PENALTY
    }


def _text(value: Any) -> str:
    if value is None:
        return 'none'
    return f'{value:g}' if isinstance(value, int | float) else str(value)


def setup_of(cfg: Mapping[str, Any]) -> dict[str, str]:
    """The settings of a config that decide how far its numbers can be compared, in the words of ``setup.csv``."""
    model, loader = cfg.get('model') or {}, cfg.get('train_dataloader') or {}
    encoder = model.get('encoder') or {}
    found: dict[str, Any] = {
        'encoder': str(encoder.get('name') or encoder.get('type')).partition('.')[0] if encoder else None,
        'output stride': encoder.get('output_stride'),
        'weights': _weights(encoder) if encoder else None,
        'heads': _heads(model.get('heads') or {}),
        'encoder forward': model.get('encoder_forward'),
        'epochs': (cfg.get('train_cfg') or {}).get('max_epochs'),
        'batch size': loader.get('batch_size'),
    }
    dataset = list(_walk(loader.get('dataset')))
    size = next((value for key, value in dataset if key == 'size' and _is_size(value)), None)
    if size is not None:
        found['image size'] = f'{size[0]} x {size[1]}'
    indices = next((value for key, value in dataset if key in ('indices', 'num_samples') and value is not None), None)
    if indices is not None:
        found['training images'] = indices if isinstance(indices, int) else len(indices)
    types = [str(value) for key, value in dataset if key == 'type']
    found['augmentation'] = ', '.join(dict.fromkeys(name for name in types if _AUGMENTING.search(name))) or 'none'
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    for what, key in (('optimizer', 'type'), ('learning rate', 'lr'), ('weight decay', 'weight_decay')):
        found[what] = optimizer.get(key)
    schedulers = cfg.get('param_scheduler') or []
    schedulers = [schedulers] if isinstance(schedulers, Mapping) else schedulers
    found['schedule'] = ', '.join(str(scheduler.get('type')) for scheduler in schedulers) or 'constant'
    return {what: str(value) for what, value in found.items() if value is not None}


def _weights(encoder: Mapping[str, Any]) -> str:
    if encoder.get('checkpoint'):
        return f'of the file {Path(str(encoder["checkpoint"])).name}'
    return 'ImageNet' if encoder.get('pretrained') else 'none, from scratch'


def _heads(heads: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The decoders' names without the word; a classification head without a decoder is a linear layer."""
    names = []
    for head in heads.values():
        decoder = head.get('decoder')
        names.append(str(decoder.get('type')).removesuffix('Decoder') if decoder else 'Linear')
    return ', '.join(dict.fromkeys(names)) or None


def _walk(value: Any, key: str = '') -> Iterator[tuple[str, Any]]:
    """All (key, value) below a config's value, the outer ones first."""
    yield key, value
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _walk(inner, name)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _walk(inner)


def _is_size(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(side, int) for side in value)


def _column(key: str, columns: Mapping[str, Any]) -> str | None:
    """The column of a table that holds our metric: one named as the metric, or, of accuracies, as the task."""
    task, _, name = key.rpartition('/')
    by_name = {_NAMES.get(column, column): column for column in columns}
    if name in by_name:
        return by_name[name]
    by_task = {_plain(column): column for column in columns}
    return by_task.get(_plain(task)) if name == 'top1' else None


def _plain(name: str) -> str:
    return re.sub(r'[^a-z0-9]', '', name.lower())


def _delta_only(benchmark: str) -> dict[str, Published]:
    """Equal weighting of log losses, and Rep-MTL's terms alone, of which Delta p alone is published."""
    found = {}
    entries, source = _read('ew_log.csv')
    for entry in entries:
        if entry['loss_transform'] == 'log':
            value, deviation = _number(entry[benchmark]), _number(entry[f'{benchmark}_std'])
            found['ew-log'] = Published('EW, log losses', {}, value, deviation, None, source)
    entries, source = _read('ablation.csv')
    for entry in entries:
        terms = (entry['tsr'] == 'yes', entry['csa'] == 'yes')
        if f'{benchmark}_delta_p_task' in entry and sum(terms) == 1:
            term = 'tsr' if terms[0] else 'csa'
            value, deviation = _number(entry[f'{benchmark}_delta_p_task']), _number(entry[f'{benchmark}_std'])
            found[f'rep-mtl-paper-{term}'] = Published(
                f'Rep-MTL, {term.upper()} alone', {}, value, deviation, None, source
            )
    return found


def _read(name: str) -> tuple[list[dict[str, str]], str]:
    """The entries of a file of this package, and the source that its first line names."""
    lines = (FOLDER / name).read_text(encoding='utf-8').splitlines()
    source = lines[0].partition('source: ')[2]
    return list(csv.DictReader(line for line in lines if not line.startswith('#'))), source


def _number(text: str | None) -> float | None:
    return float(text) if text else None
