"""Reads the logs of the runs of a comparison, and makes curves of them."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mmrepmtl.comparison.results_file import STL

RUNS = 'runs'
#: Longer curves are thinned to so many points, each the mean of its neighbours.
POINTS = 120
#: Measured every so many iterations; in between the log repeats the last value.
_NOW_AND_THEN = ('task_gradients/', 'rep_mtl/')


class Curve(NamedTuple):
    """A logged number over training: iterations, or epochs for validations, and its mean over seeds."""

    steps: list[float]
    values: list[float]


@dataclass
class History:
    """The log of one run.

    Attributes:
        train: {name: {iteration: value}}.
        val: {metric: {epoch, or iteration where there are none: value}}.
        unreadable: Lines that are no JSON, as the last line of a killed run may be.
    """

    train: dict[str, dict[int, float]] = field(default_factory=dict)
    val: dict[str, dict[int, float]] = field(default_factory=dict)
    unreadable: int = 0


def run_folder(work_dir: Path, label: str, seed: int) -> Path:
    """The folder of a run."""
    return work_dir / RUNS / label / f'seed_{seed}'


def log_folders(folder: Path, label: str) -> list[Path]:
    """The work directories of a run: its own, or of the single-task baseline one per task."""
    if label != STL:
        return [folder]
    return sorted(path for path in folder.glob('*') if path.is_dir() and any(path.glob('*/vis_data/scalars.json')))


def read_history(folders: Iterable[Path]) -> History:
    """Reads the logs in work directories; where a resumed run repeats a step, the later one counts.

    Args:
        folders: One, or of the single-task baseline one per task. What several of them log by one name, such as 'loss',
            is another number in each and is named 'FOLDER/loss'.
    """
    parts = {folder.name: _read(folder) for folder in folders}
    found = History(unreadable=sum(part.unreadable for part in parts.values()))
    for kind in ('train', 'val'):
        counts = Counter(name for part in parts.values() for name in getattr(part, kind))
        for folder, part in parts.items():
            named = {
                name if counts[name] == 1 else f'{folder}/{name}': values
                for name, values in getattr(part, kind).items()
            }
            getattr(found, kind).update(named)
    return found


def _read(folder: Path) -> History:
    found = History()
    for file in sorted(folder.glob('*/vis_data/scalars.json')):
        for line in file.read_text(encoding='utf-8', errors='replace').splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                found.unreadable += 1
                continue
            _add(found, entry)
    for name, values in found.train.items():
        if name.startswith(_NOW_AND_THEN):
            found.train[name] = _without_repeats(values)
    return found


def _without_repeats(values: Mapping[int, float]) -> dict[int, float]:
    """The steps at which a value is another one than before."""
    kept, last = {}, None
    for step in sorted(values):
        if values[step] != last:
            kept[step] = last = values[step]
    return kept


def _add(found: History, entry: Any) -> None:
    if not isinstance(entry, dict) or not isinstance(entry.get('step'), int):
        found.unreadable += 1
        return
    # Validations have no learning rate; their step is the epoch.
    place = found.train if 'lr' in entry else found.val
    for name, value in entry.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and name not in ('step', 'iter', 'epoch', 'lr', 'time', 'data_time', 'memory'):
            place.setdefault(name, {})[entry['step']] = float(value)


def mean_curve(runs: Sequence[Mapping[int, float]]) -> Curve:
    """The mean over seeds at the steps that all of them have logged, thinned; numbers that are not finite are left out.

    Args:
        runs: {step: value} of each seed.
    """
    runs = [run for run in runs if run]
    if not runs:
        return Curve([], [])
    steps = sorted(set.intersection(*(set(run) for run in runs)))
    points = [(step, math.fsum(run[step] for run in runs) / len(runs)) for step in steps]
    points = [(step, value) for step, value in points if math.isfinite(value)]
    size = math.ceil(len(points) / POINTS) or 1
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return Curve(
        [math.fsum(step for step, _ in part) / len(part) for part in parts],
        [math.fsum(value for _, value in part) / len(part) for part in parts],
    )


def curves(histories: Mapping[str, Sequence[History]], part: str) -> dict[str, dict[str, Curve]]:
    """The curves of all methods.

    Args:
        histories: {label: one history per seed}.
        part: 'train' or 'val'.

    Returns:
        {name: {label: curve}}, of those with at least one point, in the order of the logs.
    """
    found: dict[str, dict[str, Curve]] = {}
    for label, runs in histories.items():
        for name in dict.fromkeys(name for run in runs for name in getattr(run, part)):
            curve = mean_curve([getattr(run, part).get(name, {}) for run in runs])
            if curve.steps:
                found.setdefault(name, {})[label] = curve
    return found
