"""The plan of a comparison: which runs there are, what each executes, and how far each has come."""

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmrepmtl.apis.config import check_comparable, load_config, metric_settings, test_data
from mmrepmtl.apis.select_checkpoint import apply_selection
from mmrepmtl.apis.splits import check_split
from mmrepmtl.apis.train import check_training, single_task_config
from mmrepmtl.comparison.entries import Entry, parse_entries, parse_options, resolve_options
from mmrepmtl.comparison.job import CHECKPOINT, CLAIM, RECORD, is_free
from mmrepmtl.comparison.results import STL, Row
from mmrepmtl.comparison.settings import differences, settings_hash, settings_of
from mmrepmtl.engine.hooks.selection import BEST_CHECKPOINT
from mmrepmtl.utils.files import whole_file

RUNS = 'runs'
PLAN = 'comparison.json'


@dataclass(frozen=True)
class Options:
    """What holds for all runs: the options of ``train`` by the same names.

    Attributes:
        cfg_options: As typed, ``key=value``.
        selection: Which checkpoint of a run is tested.
        selection_metric: What 'best-val' goes by.
        precision: Of the trainings.
        data_root: Folder of the data set.
    """

    cfg_options: tuple[str, ...] = ()
    selection: str = 'last'
    selection_metric: str | None = None
    precision: str | None = None
    data_root: str | None = None


@dataclass(frozen=True)
class Contestant:
    """An entry with its resolved config.

    Attributes:
        entry: The entry.
        settings: What its numbers depend on, without the seed.
        config_hash: Of the settings.
        config_file: Name of the config's copy in a run's folder.
        tasks: Names of the tasks.
    """

    entry: Entry
    settings: Mapping[str, Any]
    config_hash: str
    config_file: str
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """One training with its test.

    Attributes:
        contestant: The contestant.
        seed: The seed.
        folder: The work directory.
        steps: ``(name, command)`` in their order.
        known: Whether a row of the results has its numbers already.
    """

    contestant: Contestant
    seed: int
    folder: Path
    steps: tuple[tuple[str, tuple[str, ...]], ...]
    known: bool = False

    @property
    def name(self) -> str:
        """For messages."""
        return f'{self.contestant.entry.label}, seed {self.seed}'

    def record(self) -> dict[str, Any]:
        """What ``run.json`` says; empty if there is none, or a damaged one."""
        try:
            content = json.loads((self.folder / RECORD).read_text(encoding='utf-8'))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    @property
    def state(self) -> str:
        """'done', 'running', 'failed', 'partial' or 'missing'."""
        if self.known:
            return 'done'
        record = self.record()
        if record.get('state') == 'done':
            return 'done'
        if not is_free(self.folder / CLAIM):
            return 'running'
        if record.get('state') == 'failed':
            return 'failed'
        return 'partial' if record else 'missing'


def load_contestants(config: str, methods: Sequence[str], options: Options) -> list[Contestant]:
    """Reads and checks the configs of all entries of ``--methods``.

    Raises:
        FileNotFoundError: There is no such config.
        ValueError: An unknown method, a damaged sweep, or a config without what a training and a test need; names the
            entry.
    """
    contestants = []
    for entry in parse_entries(methods, config):
        try:
            contestants.append(_load(entry, options))
        except ValueError as error:
            text = str(error)
            raise ValueError(text if entry.label in text else f'{entry.label}: {text}') from error
    _check_same_test(contestants, config, options)
    return contestants


def load_entry(entry: Entry, options: Options) -> Config:
    """The config of an entry with seed 0, with its sweep in place."""
    own = [f'{key}={value}' for key, value in entry.options.items()]
    cfg = load_config(
        entry.config,
        method=entry.method,
        work_dir='work_dir',
        seed=0,
        precision=options.precision,
        data_root=options.data_root,
        cfg_options=parse_options([*options.cfg_options, *own]),
        regularizer=entry.regularizer,
    )
    apply_selection(cfg, options.selection, options.selection_metric)
    return cfg


def _load(entry: Entry, options: Options) -> Contestant:
    if entry.sweep:
        entry = resolve_options(entry, load_entry(entry, options))
    cfg = load_entry(entry, options)
    check_training(cfg)
    check_split(cfg, 'test', 'compare')
    heads = cfg.model.get('heads') or {}
    if entry.method == STL:
        if not heads:
            raise ValueError('--method stl: the model of this config has no dict of heads, so no tasks to train alone')
        for task in heads:
            single_task_config(cfg, task)
    settings = settings_of(cfg)
    return Contestant(entry, settings, settings_hash(settings), Path(cfg.filename).name, tuple(heads))


def _check_same_test(contestants: Sequence[Contestant], config: str, options: Options) -> None:
    """Numbers of different test sets or metrics do not belong in one table."""
    own = load_entry(Entry('', None, None, config), options)
    for contestant in contestants:
        if contestant.entry.method is None:
            cfg = load_entry(contestant.entry, options)
            meta = dict(test_data=test_data(cfg), metric_settings=metric_settings(cfg))
            check_comparable(own, {f'--methods: {contestant.entry.config}': meta})


def make_runs(work_dir: Path, contestants: Sequence[Contestant], seeds: Sequence[int], options: Options) -> list[Run]:
    """The runs, seed by seed, so that the first seed's table is complete early."""
    return [_make_run(work_dir, contestant, seed, options) for seed in seeds for contestant in contestants]


def _make_run(work_dir: Path, contestant: Contestant, seed: int, options: Options) -> Run:
    entry = contestant.entry
    folder = work_dir / RUNS / entry.label / f'seed_{seed}'
    mmrepmtl = (sys.executable, '-m', 'mmrepmtl')
    train = [*mmrepmtl, 'train', entry.config, '--work-dir', str(folder), '--resume', '--seed', str(seed)]
    for name, value in (
        ('--method', entry.method),
        ('--regularizer', entry.regularizer),
        ('--precision', options.precision),
        ('--data-root', options.data_root),
        ('--selection', options.selection if options.selection != 'last' else None),
        ('--selection-metric', options.selection_metric),
    ):
        train += [name, value] if value is not None else []
    own = [f'{key}={value}' for key, value in entry.options.items()]
    if options.cfg_options or own:
        train += ['--cfg-options', *options.cfg_options, *own]
    steps = [('train', tuple(train))]
    # The baseline tests each task itself; last10 has its numbers from the evaluations of the training.
    if entry.method != STL and options.selection != 'last10':
        checkpoint = str(folder / BEST_CHECKPOINT) if options.selection == 'best-val' else CHECKPOINT
        test = (str(folder / contestant.config_file), checkpoint, '--work-dir', str(folder))
        steps.append(('test', (*mmrepmtl, 'test', *test)))
    return Run(contestant, seed, folder, tuple(steps))


def mark_known(runs: Sequence[Run], rows: Sequence[Row], source: str | os.PathLike) -> list[Run]:
    """Takes the runs as done that a results file has, with the same config.

    Args:
        runs: The runs.
        rows: Of the file.
        source: The file, for the error.

    Raises:
        ValueError: The file has a run of this label and seed with another config.
    """
    hashes = {(row.label, row.seed): row.config_hash for row in rows if row.split == 'test'}
    marked = []
    for run in runs:
        contestant = run.contestant
        known = hashes.get((contestant.entry.label, run.seed))
        if known is not None and known != contestant.config_hash:
            raise ValueError(
                f'{source} has {run.name} with the config {known}, but the config is {contestant.config_hash} now; '
                'take the config that it was run with, or leave these rows out'
            )
        marked.append(replace(run, known=run.known or known is not None))
    return marked


def check_unchanged(runs: Sequence[Run]) -> None:
    """Refuses to go on in folders of another config.

    Raises:
        ValueError: Naming each such run, and the first keys that differ.
    """
    changed: dict[str, str] = {}
    for run in runs:
        record = run.record()
        if record and record.get('config_hash') != run.contestant.config_hash:
            label = run.contestant.entry.label
            changed.setdefault(label, differences(record.get('settings') or {}, run.contestant.settings))
    if changed:
        told = '; '.join(f'{label}: {what or "its settings"}' for label, what in changed.items())
        folders = ' '.join(str(run.folder.parent) for run in runs if run.contestant.entry.label == next(iter(changed)))
        raise ValueError(
            f'the config has changed since these runs were started: {told}. Use another --work-dir, take the change '
            f'back, or remove {folders.split()[0]} and its rows in the results to train anew'
        )


def read_plan(work_dir: Path) -> dict[str, Any]:
    """``comparison.json``, or an empty dict.

    Raises:
        ValueError: It is damaged.
    """
    file = work_dir / PLAN
    try:
        return json.loads(file.read_text(encoding='utf-8'))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f'{file} is damaged ({error}); remove it, it is written anew') from error


def write_plan(
    work_dir: Path, config: str, contestants: Sequence[Contestant], seeds: Sequence[int], options: Options
) -> None:
    """Writes ``comparison.json``; methods and seeds of earlier calls in this folder stay in it."""
    before = read_plan(work_dir)
    entries = {
        contestant.entry.label: dict(
            asdict(contestant.entry),
            method_name=contestant.entry.method_name,
            config_hash=contestant.config_hash,
            tasks=contestant.tasks,
            settings=contestant.settings,
        )
        for contestant in contestants
    }
    old = before.get('methods') or []
    # Who names all of them says the order; who adds one adds it at the end.
    methods = list(entries) if set(old) <= set(entries) else list(dict.fromkeys([*old, *entries]))
    content = dict(
        config=config,
        methods=methods,
        seeds=sorted({*(before.get('seeds') or []), *seeds}),
        options=asdict(options),
        entries=(before.get('entries') or {}) | entries,
    )
    with whole_file(work_dir / PLAN) as file:
        file.write((json.dumps(content, indent=1) + '\n').encode())


def plan_lines(runs: Sequence[Run]) -> list[str]:
    """The plan for ``--dry-run``: each run with its state, and the commands of those that are not done."""
    states = [run.state for run in runs]
    counts = ', '.join(f'{states.count(state)} {state}' for state in dict.fromkeys(states))
    lines = [f'{len(runs)} runs: {counts}']
    for run, state in zip(runs, states, strict=True):
        lines.append(f'{state:<8} {run.name}: {run.folder}')
        if state != 'done':
            lines += [f'    {_shell(command, run.folder)}' for _, command in run.steps]
    return lines


def _shell(command: Sequence[str], folder: Path) -> str:
    last = f'"$(cat {shlex.quote(str(folder / "last_checkpoint"))})"'
    return ' '.join(last if part == CHECKPOINT else shlex.quote(part) for part in command)
