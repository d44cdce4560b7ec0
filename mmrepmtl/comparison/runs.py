"""The runs of a comparison: what each executes, which numbers it yields, and how far it has come."""

import json
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmrepmtl.comparison.job import CHECKPOINT, CLAIM, LAST_CHECKPOINT, RECORD, is_free
from mmrepmtl.comparison.plan import Contestant, Options, selection_metric
from mmrepmtl.comparison.results_file import STL, Row
from mmrepmtl.comparison.settings import differences
from mmrepmtl.engine.hooks.metrics_file import METRICS_FILE
from mmrepmtl.engine.hooks.selection import BEST_CHECKPOINT
from mmrepmtl.engine.hooks.task_gradients import TaskGradientsHook

RUNS = 'runs'
TEST_METRICS = 'test_metrics.json'
STL_METRICS = 'stl.json'
VALIDATION = 'val'
"""Folder, in a run's own, of its numbers on the validation data."""


@dataclass(frozen=True)
class Run:
    """One training with its tests.

    Attributes:
        contestant: The contestant.
        seed: The seed.
        folder: The work directory.
        steps: ``(name, command)`` in their order.
        results: ``(split, file in the folder)`` of the metrics that it yields.
        known: Whether rows of the results have its numbers already.
        note: Said in the results beside the selection of the checkpoint.
    """

    contestant: Contestant
    seed: int
    folder: Path
    steps: tuple[tuple[str, tuple[str, ...]], ...]
    results: tuple[tuple[str, str], ...]
    known: bool = False
    note: str = ''

    @property
    def name(self) -> str:
        """For messages."""
        place = '' if any(split == 'test' for split, _ in self.results) else ' (validation)'
        return f'{self.contestant.entry.label}{place}, seed {self.seed}'

    def record(self) -> dict[str, Any]:
        """The content of ``run.json``; empty if there is none, or a damaged one."""
        return self._read()[0]

    @property
    def damage(self) -> str:
        """Says what is wrong with ``run.json``; '' if it is whole, or not there."""
        return self._read()[1]

    def _read(self) -> tuple[dict[str, Any], str]:
        file = self.folder / RECORD
        try:
            content = json.loads(file.read_text(encoding='utf-8'))
        except (FileNotFoundError, NotADirectoryError):
            return {}, ''
        except (OSError, ValueError) as error:
            return {}, f'{file} cannot be read ({error})'
        return (content, '') if isinstance(content, dict) else ({}, f'{file} is no record of a run')

    @property
    def state(self) -> str:
        """'done', 'running', 'failed', 'partial' or 'missing'."""
        if self.known:
            return 'done'
        record = self.record()
        if {name for name, _ in self.steps} <= set(record.get('steps_done', [])):
            return 'done'
        if not is_free(self.folder / CLAIM):
            return 'running'
        if record.get('state') == 'failed':
            return 'failed'
        return 'partial' if record else 'missing'


def make_runs(
    work_dir: Path,
    contestants: Iterable[Contestant],
    seeds: Sequence[int],
    options: Options,
    splits: Sequence[str] = ('test',),
) -> list[Run]:
    """The runs, seed by seed, so that the first seed's table is complete early.

    Args:
        work_dir: The folder of the comparison.
        contestants: The contestants.
        seeds: The seeds.
        options: What holds for all runs.
        splits: 'test', 'val' or both: what each is measured on.
    """
    contestants = list(contestants)
    return [_make_run(work_dir, one, seed, options, splits) for seed in seeds for one in contestants]


def _make_run(work_dir: Path, contestant: Contestant, seed: int, options: Options, splits: Sequence[str]) -> Run:
    entry = contestant.entry
    folder = work_dir / RUNS / f'{entry.label}{contestant.folder_suffix}' / f'seed_{seed}'
    steps = [('train', tuple(_train_command(contestant, folder, seed, options)))]
    if entry.method == STL:  # tests each task itself
        return Run(contestant, seed, folder, tuple(steps), (('test', STL_METRICS),))
    if options.selection == 'last10':  # the mean over evaluations of the training, on the data of the test
        split = 'val' if contestant.folder_suffix else 'test'
        return Run(contestant, seed, folder, tuple(steps), ((split, METRICS_FILE),))
    checkpoint = str(folder / BEST_CHECKPOINT) if options.selection == 'best-val' else CHECKPOINT
    command = [sys.executable, '-m', 'mmrepmtl', 'test', str(folder / contestant.config_file), checkpoint, '--work-dir']
    results = []
    # A part of the training images stands in the place of the test set.
    for split in splits if not contestant.folder_suffix else ('test',):
        if split == 'val':
            place = VALIDATION
            steps.append(('val', (*command, str(folder / place), '--split', 'val', '--no-constant')))
        else:
            place = ''
            steps.append(('test', (*command, str(folder), *(['--no-constant'] if contestant.folder_suffix else []))))
        results.append(('val' if contestant.folder_suffix else split, os.path.join(place, TEST_METRICS)))
    return Run(contestant, seed, folder, tuple(steps), tuple(results))


def _train_command(contestant: Contestant, folder: Path, seed: int, options: Options) -> list[str]:
    entry = contestant.entry
    command = [sys.executable, '-m', 'mmrepmtl', 'train', entry.config, '--work-dir', str(folder), '--resume']
    for name, value in (
        ('--seed', str(seed)),
        ('--method', entry.method),
        ('--regularizer', entry.regularizer),
        ('--precision', options.precision),
        ('--data-root', options.data_root),
        ('--selection', options.selection if options.selection != 'last' else None),
        ('--selection-metric', selection_metric(entry, options)),
    ):
        command += [name, value] if value is not None else []
    own = [f'{key}={value}' for key, value in entry.options.items()]
    if options.gradients and contestant.measures_gradients:
        hook = 'default_hooks.task_gradients'
        own += [f'{hook}.type={TaskGradientsHook.__name__}', f'{hook}.interval={options.gradients}']
    if options.cfg_options or own:
        command += ['--cfg-options', *options.cfg_options, *own]
    return command


def mark_known(runs: Sequence[Run], rows: Sequence[Row], source: str | os.PathLike) -> list[Run]:
    """Takes the runs as done that a results file has, with the same config.

    Args:
        runs: The runs.
        rows: Of the file.
        source: The file, for the error.

    Raises:
        ValueError: The file has a run of this label and seed with another config.
    """
    hashes = {(row.label, row.seed, row.split): row.config_hash for row in rows}
    marked = []
    for run in runs:
        label, own = run.contestant.entry.label, run.contestant.config_hash
        there = [hashes.get((label, run.seed, split)) for split, _ in run.results]
        for known in there:
            if known not in (None, own):
                raise ValueError(
                    f'{source} has {run.name} with the config {known}, but the config is {own} now; take the config '
                    'that it was run with, or leave these rows out'
                )
        marked.append(replace(run, known=run.known or None not in there))
    return marked


def check_unchanged(runs: Sequence[Run]) -> None:
    """Refuses to go on in folders of another config.

    Raises:
        ValueError: Naming each such contestant, and the first keys that differ; or a record that cannot be read.
    """
    changed: dict[str, str] = {}
    for run in runs:
        if run.damage:
            raise ValueError(
                f'{run.damage}, so nothing says with which config {run.name} was begun; remove {run.folder} to train '
                'it anew'
            )
        record = run.record()
        if record and record.get('config_hash') != run.contestant.config_hash:
            what = differences(record.get('settings') or {}, run.contestant.settings)
            changed.setdefault(str(run.folder.parent), what or 'the settings')
    if changed:
        told = '; '.join(f'{folder}: {what}' for folder, what in changed.items())
        raise ValueError(
            f'the config has changed since these runs were started: {told}. Take the change back, use another '
            '--work-dir, or remove these folders to train anew'
        )


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
    last = f'"$(cat {shlex.quote(str(folder / LAST_CHECKPOINT))})"'
    return ' '.join(last if part == CHECKPOINT else shlex.quote(part) for part in command)
