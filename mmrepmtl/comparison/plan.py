"""The plan of a comparison: its contestants, with their configs, and ``comparison.json``."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmrepmtl.apis.config import check_comparable, load_config, metric_settings, test_data
from mmrepmtl.apis.select_checkpoint import apply_selection, validates_on_test_set
from mmrepmtl.apis.splits import check_split
from mmrepmtl.apis.train import check_training, single_task_config
from mmrepmtl.comparison.entries import Entry, parse_entries, parse_options, resolve_options
from mmrepmtl.comparison.results_file import STL
from mmrepmtl.comparison.settings import settings_hash, settings_of
from mmrepmtl.engine import MultiTaskOptimWrapper
from mmrepmtl.registry import OPTIM_WRAPPERS
from mmrepmtl.utils.config_types import is_type
from mmrepmtl.utils.files import whole_file

PLAN = 'comparison.json'


@dataclass(frozen=True)
class Options:
    """Settings of all runs: the options of ``train`` by the same names.

    Attributes:
        cfg_options: As typed, ``key=value``.
        selection: Which checkpoint of a run is tested.
        selection_metric: What 'best-val' goes by.
        precision: Of the trainings.
        data_root: Folder of the data set.
        gradients: Iterations between measurements of the tasks' gradients (:class:`TaskGradientsHook`); 0: none.
    """

    cfg_options: tuple[str, ...] = ()
    selection: str = 'last'
    selection_metric: str | None = None
    precision: str | None = None
    data_root: str | None = None
    gradients: int = 50


@dataclass(frozen=True)
class Contestant:
    """An entry with its resolved config.

    Attributes:
        entry: The entry.
        settings: What its numbers depend on, without the seed.
        config_hash: Of the settings.
        config_file: Name of the config's copy in a run's folder.
        tasks: Names of the tasks.
        measures_gradients: Whether its runs can measure the gradients of several tasks.
        folder_suffix: Of its runs: '' or, on parts of the training images, '@val'.
    """

    entry: Entry
    settings: Mapping[str, Any]
    config_hash: str
    config_file: str
    tasks: tuple[str, ...]
    measures_gradients: bool = True
    folder_suffix: str = ''


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
            contestants.append(load_contestant(entry, options))
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
    apply_selection(cfg, options.selection, selection_metric(entry, options))
    return cfg


def selection_metric(entry: Entry, options: Options) -> str | None:
    """The metric that 'best-val' goes by; a task that is trained alone has none of another, and goes by its own."""
    return None if entry.method == STL else options.selection_metric


def load_contestant(entry: Entry, options: Options, folder_suffix: str = '') -> Contestant:
    """Resolves an entry and checks its config; see :func:`load_contestants`."""
    if entry.sweep and not entry.options:
        entry = resolve_options(entry, load_entry(entry, options))
    cfg = load_entry(entry, options)
    check_training(cfg)
    check_split(cfg, 'test', 'compare')
    if options.selection == 'last10' and not validates_on_test_set(cfg):
        raise ValueError(
            '--selection last10: it is the mean of evaluations on val_dataloader, but test_dataloader has other data, '
            'and a comparison is of the test set; use last or best-val'
        )
    heads = cfg.model.get('heads') or {}
    if entry.method == STL:
        if not heads:
            raise ValueError('--method stl: the model of this config has no dict of heads, so no tasks to train alone')
        for task in heads:
            single_task_config(cfg, task)
    settings, name = settings_of(cfg), Path(cfg.filename).name
    measures = entry.method != STL and is_type(cfg.optim_wrapper.get('type'), OPTIM_WRAPPERS, MultiTaskOptimWrapper)
    return Contestant(entry, settings, settings_hash(settings), name, tuple(heads), measures, folder_suffix)


def _check_same_test(contestants: Sequence[Contestant], config: str, options: Options) -> None:
    """Numbers of different test sets or metrics do not belong in one table."""
    own = load_entry(Entry('', None, None, config), options)
    for contestant in contestants:
        if contestant.entry.method is None:
            cfg = load_entry(contestant.entry, options)
            meta = dict(test_data=test_data(cfg), metric_settings=metric_settings(cfg))
            check_comparable(own, {f'--methods: {contestant.entry.config}': meta})


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
    work_dir: Path,
    config: str,
    contestants: Sequence[Contestant],
    seeds: Sequence[int],
    options: Options,
    choices: Mapping[str, Any],
) -> None:
    """Writes ``comparison.json``; methods, seeds and choices of earlier calls in this folder stay in it."""
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
        choices={**(before.get('choices') or {}), **choices},
        entries={**(before.get('entries') or {}), **entries},
    )
    with whole_file(work_dir / PLAN) as file:
        file.write((json.dumps(content, indent=1) + '\n').encode())
