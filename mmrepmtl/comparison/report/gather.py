"""Everything that the report shows, collected from the rows and the folder of a comparison."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from mmrepmtl.apis import get_config
from mmrepmtl.apis.config_file import read_config
from mmrepmtl.comparison.paper_rows import Fact, Published, benchmark_of, published_row, published_rows, setup_facts
from mmrepmtl.comparison.report.history import History, log_folders, read_history, run_folder
from mmrepmtl.comparison.report.pictures import SAMPLES, Drawn, NotDrawn, draw_run
from mmrepmtl.comparison.results_file import CONSTANT, Row
from mmrepmtl.comparison.summary import Summary, summarize

PLAN = 'comparison.json'


@dataclass
class Material:
    """All that a report is made of.

    Attributes:
        title: Name of the folder.
        summary: The numbers of the test split.
        chosen: Those of the validation split, by which the values of a sweep were chosen; None without any.
        rows: All rows.
        histories: {label: the logs of its seeds}; empty without folders of runs.
        samples: {label: (seed, predictions)}.
        benchmark: Name of the published benchmark, None if there is none for this data set.
        published: {label: its published row}.
        facts: The published set-up beside ours.
        absent: {part of the page: why it is not there, or what of it is not}.
    """

    title: str
    summary: Summary
    rows: Sequence[Row]
    chosen: Summary | None = None
    histories: dict[str, list[History]] = field(default_factory=dict)
    samples: dict[str, tuple[int, Drawn]] = field(default_factory=dict)
    benchmark: str | None = None
    published: dict[str, Published] = field(default_factory=dict)
    facts: list[Fact] = field(default_factory=list)
    absent: dict[str, list[str]] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """All labels, in the order of their colours."""
        return list(self.summary.methods)


def gather(work_dir: Path, rows: Sequence[Row], pictures: bool = True) -> Material:
    """Collects what there is; what is not is named in ``absent``.

    Args:
        work_dir: The folder of the comparison.
        rows: Of its results.
        pictures: Whether to draw predictions that were not drawn before.

    Raises:
        ValueError: ``comparison.json`` is damaged.
    """
    plan = read_plan(work_dir)
    order, seeds = list(plan.get('methods') or []), list(plan.get('seeds') or [])
    material = Material(work_dir.resolve().name, summarize(rows, _to_test(plan, order), seeds), rows)
    if any(row.split == 'val' for row in rows):
        material.chosen = summarize(rows, order, split='val')
    _read_logs(work_dir, material)
    _draw_samples(work_dir, material, pictures)
    _compare_with_published(work_dir, material)
    return material


def read_plan(work_dir: Path) -> dict[str, Any]:
    """``comparison.json``; empty where there is none, as beside results that were copied alone.

    Raises:
        ValueError: It is damaged.
    """
    file = work_dir / PLAN
    if not file.is_file():
        return {}
    try:
        plan = json.loads(file.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{file} is damaged ({error}); remove it, it is written anew') from error
    if not isinstance(plan, dict):
        raise ValueError(f'{file} is no plan of a comparison; remove it, it is written anew')
    return plan


def _to_test(plan: dict[str, Any], methods: Sequence[str]) -> list[str]:
    """The methods without the values of sweeps that were not chosen, which are not tested."""
    entries, choices = plan.get('entries') or {}, plan.get('choices') or {}
    chosen = {label: choices.get((entries.get(label) or {}).get('group')) for label in methods}
    return [label for label, choice in chosen.items() if choice is None or choice.get('chosen') == label]


def _read_logs(work_dir: Path, material: Material) -> None:
    gone: dict[str, list[int]] = {}
    for label, own in material.summary.methods.items():
        if label == CONSTANT:
            continue
        found = []
        for seed in own.seeds:
            history = read_history(log_folders(run_folder(work_dir, label, seed), label))
            if history.train or history.val:
                found.append(history)
            else:
                gone.setdefault(label, []).append(seed)
            if history.unreadable:
                _note(material, 'curves', f'{label}, seed {seed}: {history.unreadable} unreadable lines in its log')
        if found:
            material.histories[label] = found
    if gone and not material.histories:
        _note(material, 'curves', 'no run folder with a log is here: this report is made of the results alone')
    elif gone:
        told = '; '.join(f'{label}, seed {", ".join(map(str, seeds))}' for label, seeds in gone.items())
        _note(material, 'curves', f'no log in the run folders of {told}')


def _draw_samples(work_dir: Path, material: Material, pictures: bool) -> None:
    folders = {label: run_folder(work_dir, label, seed) for label, seed in _first_seeds(material).items()}
    gone = [label for label, folder in folders.items() if not folder.is_dir()]
    if gone:
        _note(material, 'samples', f'no run folder, so no model to predict with, of {", ".join(gone)}')
    later: list[str] = []
    for label, seed in _first_seeds(material).items():
        if label in gone:
            continue
        # A model, a data set and a drawing of any kind: whatever fails, the numbers are worth a report.
        try:
            material.samples[label] = seed, draw_run(folders[label], label, SAMPLES, pictures)
        except NotDrawn:
            later.append(label)
        except Exception as error:
            reason = f'{label}, seed {seed}: {error or type(error).__name__}'
            print_log(f'report: no predictions of {reason}', logger='current', level=logging.WARNING)
            _note(material, 'samples', reason)
    if later:
        _note(material, 'samples', f'not drawn yet, but with the report at the end: {", ".join(later)}')


def _first_seeds(material: Material) -> dict[str, int]:
    """{label: the first seed of its finished runs}."""
    methods = material.summary.methods.items()
    return {label: own.seeds[0] for label, own in methods if label != CONSTANT and own.seeds}


def _compare_with_published(work_dir: Path, material: Material) -> None:
    cfg = _config(work_dir, material)
    if cfg is None:
        return
    material.benchmark = benchmark_of(cfg)
    if material.benchmark is None:
        _note(material, 'published', 'the paper has no table for this data set')
        return
    rows = published_rows(material.benchmark, material.summary.keys)
    for label, own in material.summary.methods.items():
        row = published_row(rows, own.method)
        if row is not None:
            material.published[label] = row
    entries = read_plan(work_dir).get('entries') or {}
    settings = {label: (entries.get(label) or {}).get('settings') for label in material.published}
    material.facts = setup_facts(material.benchmark, cfg, len(material.summary.seeds), settings)


def _config(work_dir: Path, material: Material) -> Config | None:
    """The config of a finished run, or the one that the results name."""
    tried: list[Path] = []
    for label, own in material.summary.methods.items():
        for seed in own.seeds:
            for folder in log_folders(run_folder(work_dir, label, seed), label):
                tried += sorted(folder.glob('*.py'))[:1]
    names: list[str | Path] = list(dict.fromkeys(row.config for row in material.rows))
    reason = 'no run names its config'
    for source in [*tried, *names]:
        try:
            return read_config(source) if isinstance(source, Path) else get_config(source)
        except Exception as error:  # a config is a program
            reason = f'the config {source} cannot be read: {error or type(error).__name__}'
    _note(material, 'published', reason)
    return None


def _note(material: Material, part: str, text: str) -> None:
    material.absent.setdefault(part, []).append(text)
