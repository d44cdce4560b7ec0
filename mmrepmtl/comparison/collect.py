"""From the folder of a finished run to its rows."""

import json
import math
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from mmrepmtl.apis.config_file import PACKAGE
from mmrepmtl.apis.evaluate import GIVEN_CHECKPOINT
from mmrepmtl.comparison.entries import sweep_text
from mmrepmtl.comparison.results_file import AND, CONSTANT, STL, Row
from mmrepmtl.comparison.runs import Run
from mmrepmtl.engine.hooks.metrics_file import NO_SELECTION
from mmrepmtl.evaluation import higher_is_better, load_results
from mmrepmtl.version import __version__

PACKAGES = ('torch', 'torchvision', 'onedl-mmengine', 'onedl-mmcv', 'onedl-mmsegmentation', 'timm', 'numpy')
SKIPPED = 0.1
"""Share of a run's logged step times that is left out at the start: caches are cold, and kernels are chosen."""


def rows_of(run: Run, config: str) -> list[Row]:
    """The rows of a finished run, with those of the best constants if it has them.

    Args:
        run: Its state is 'done'.
        config: The config of the comparison, as it was given.

    Raises:
        ValueError: The file with its metrics is missing or damaged.
    """
    record = run.record()
    trainings = [attempt for attempt in record.get('attempts', []) if attempt.get('step') == 'train']
    logs = list(_logs(run))
    of_run: dict[str, Any] = dict(
        config=config,
        commit=_joined(attempt.get('commit') for attempt in _contributing(record)) or 'unknown',
        versions=json.dumps(_joined_versions(_contributing(record)), sort_keys=True),
        finished=record.get('finished', ''),
    )
    costs: dict[str, Any] = dict(
        step_seconds=_step_seconds(logs),
        peak_memory_mib=_peak_memory(logs, trainings),
        train_seconds=round(math.fsum(attempt.get('seconds', 0.0) for attempt in trainings), 1),
    )
    rows = []
    for split, name in run.results:
        metrics, meta = load_results(run.folder / name)
        selection = NO_SELECTION if meta.get('selection') == GIVEN_CHECKPOINT else str(meta.get('selection', ''))
        about: dict[str, Any] = dict(of_run, split=split, selection='; '.join(filter(None, (selection, run.note))))
        own: dict[str, Any] = dict(
            seed=run.seed, config_hash=run.contestant.config_hash, sweep=sweep_text(run.contestant.entry)
        )
        label, method = run.contestant.entry.label, run.contestant.entry.method_name
        rows += [Row(label=label, method=method, **_metric(*item), **own, **costs, **about) for item in metrics.items()]
        # They depend on the data alone.
        absent: dict[str, Any] = dict.fromkeys(('seed', 'step_seconds', 'peak_memory_mib', 'train_seconds'))
        absent |= about | dict(label=CONSTANT, method=CONSTANT, config_hash='', selection='')
        rows += [Row(**absent, **_metric(*item)) for item in (meta.get('constant') or {}).items()]
    return rows


def _contributing(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The attempts that a run's numbers come from: a training that failed may have left its checkpoint."""
    attempts = [one for one in record.get('attempts', []) if one.get('step') == 'train' or one.get('state') == 'done']
    shared = {key: record[key] for key in ('commit', 'versions') if key in record}
    return [shared | attempt for attempt in attempts] or [shared]


def _joined(values: Iterable[str | None]) -> str:
    """The different ones: 'a', or 'a and b'."""
    return AND.join(dict.fromkeys(value for value in values if value))


def _joined_versions(attempts: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    names = sorted({name for attempt in attempts for name in attempt.get('versions', {})})
    return {name: _joined(attempt.get('versions', {}).get(name) for attempt in attempts) for name in names}


def _metric(key: str, value: float | None) -> dict[str, Any]:
    return dict(
        metric=key,
        value=math.nan if value is None else float(value),
        higher_is_better=higher_is_better(key),
        task=key.rpartition('/')[0],
    )


def _logs(run: Run) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(task of the baseline or '', the training lines of its logs, resumed parts after one another)."""
    folders = (
        [run.folder / task for task in run.contestant.tasks] if run.contestant.entry.method == STL else [run.folder]
    )
    for folder in folders:
        lines = []
        for file in sorted(folder.glob('*/vis_data/scalars.json')):
            for text in file.read_text(encoding='utf-8').splitlines():
                try:
                    line = json.loads(text)
                except ValueError:  # the last one of a killed run
                    continue
                if isinstance(line, dict) and 'lr' in line and 'time' in line:
                    lines.append(line)
        yield folder.name, lines


def _step_seconds(logs: list[tuple[str, list[dict[str, Any]]]]) -> float | None:
    """Median time of an iteration; of the baseline the sum over its tasks."""
    medians = []
    for _, lines in logs:
        times = [line['time'] for line in lines]
        times = times[math.ceil(SKIPPED * len(times)) if len(times) > 1 else 0 :]
        if not times:
            return None
        medians.append(statistics.median(times))
    return round(math.fsum(medians), 5) if medians else None


def _peak_memory(logs: list[tuple[str, list[dict[str, Any]]]], trainings: list[Mapping[str, Any]]) -> float | None:
    """MiB: of the GPU, which mmengine's log says where there is one, else of the largest process."""
    gpu = [line['memory'] for _, lines in logs for line in lines if 'memory' in line]
    sizes = gpu or [attempt['max_rss_mib'] for attempt in trainings if 'max_rss_mib' in attempt]
    return round(max(sizes), 1) if sizes else None


def commit() -> str:
    """The commit of the checkout that this package lies in, with '-dirty' for uncommitted changes; else 'unknown'."""
    root = PACKAGE.parent
    if not (root / '.git').exists():  # an environment inside somebody's repository is no checkout
        return 'unknown'
    try:
        command = ['git', '-C', str(root), 'describe', '--always', '--abbrev=12', '--exclude=*', '--dirty']
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return 'unknown'


def versions(device: str, threads: int) -> dict[str, str]:
    """Versions of what computes, the device and its threads."""
    found = dict(mmrepmtl=__version__, python=platform.python_version(), device=device, threads=str(threads))
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def device_name(visible: str | None) -> str:
    """Name of the GPU that runs use, or 'cpu'."""
    return torch.cuda.get_device_name(0) if visible != '' and torch.cuda.is_available() else 'cpu'


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
