"""What the converters in ``tools/dataset_converters`` share.

Files are written whole or not at all, by several processes; a second run goes on where the first one ended, if it was
begun with the same settings; what there is, is compared with the official counts.
"""

import argparse
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mmrepmtl.datasets.checks import VOID, check_image, check_target
from mmrepmtl.datasets.folder_archive import FileSet
from mmrepmtl.datasets.transforms import ResizeMultiTask
from mmrepmtl.utils.files import TEMPORARY, whole_file

SETTINGS_FILE = 'conversion.json'
SECONDS_PER_LINE = 5.0
SHOWN_FAILURES = 10
# What a user or a damaged source can cause; anything else is a mistake in the code and shows its traceback.
USER_ERRORS = (ValueError, OSError, ImportError)


@dataclass(frozen=True)
class Sample:
    """One sample to convert.

    Args:
        name: What the source calls it.
        source: What ``Plan.load`` needs to load it; travels to the worker processes.
        files: {modality: file to write}.
    """

    name: str
    source: Any
    files: Mapping[str, Path]

    def missing(self) -> dict[str, Path]:
        """The files that are not there yet."""
        return {name: path for name, path in self.files.items() if not path.exists()}


@dataclass(frozen=True)
class Plan:
    """What a converter is going to do.

    Args:
        load: From a sample's source and the names of modalities to {modality: array to write}, see :func:`save_array`.
        samples: {split: its samples}.
        official: {split: how many there should be}.
        problems: What the source lacks besides, one sentence each.
        settings: What the files depend on, besides the names of the samples.
    """

    load: Callable[[Any, Sequence[str]], Mapping[str, np.ndarray]]
    samples: Mapping[str, Sequence[Sample]]
    official: Mapping[str, int]
    problems: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def all_samples(self) -> list[Sample]:
        """The samples of all splits."""
        return [sample for samples in self.samples.values() for sample in samples]


def save_array(path: Path, array: np.ndarray) -> None:
    """Writes ``array`` whole or not at all.

    To a .npy file any array; to a .png file (H, W) or RGB (H, W, 3) uint8; to any other (N,) uint8, the bytes of a file
    that is copied.
    """
    with whole_file(path) as file:
        if path.suffix == '.npy':
            np.save(file, array)
        elif path.suffix != '.png':
            file.write(array.tobytes())
        else:
            encoded = cv2.imencode('.png', array[..., ::-1] if array.ndim == 3 else array)[1]
            file.write(encoded.tobytes())


def fit_sample(
    img: np.ndarray,
    gt: Mapping[str, np.ndarray],
    targets: Mapping[str, Mapping],
    size: tuple[int, int],
    paths: Mapping[str, Any],
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Checks a sample and resizes it as ``ResizeMultiTask(size, 'area')`` does in a pipeline.

    Args:
        img: (h, w, 3) float32 in [0, 1].
        gt: {target: array} in the formats of ``MultiTaskDataset``, each of any size.
        targets: Declarations of the targets.
        size: (H, W).
        paths: {'image' or target: file to name in errors}.

    Raises:
        ValueError: As the checks of ``MultiTaskDataset``.
    """
    check_image(img, str(paths['image']))
    for name, value in gt.items():
        check_target(name, value, targets[name], value.shape[:2], str(paths[name]))
    results = ResizeMultiTask(size, 'area').transform(dict(img=img, gt=dict(gt), targets=targets))
    # A mean of values in [0, 1] may round to just above 1.
    return np.clip(results['img'], 0, 1), results['gt']


def archive_array(value: np.ndarray, kind: str) -> np.ndarray:
    """A target in the format of ``MultiTaskDataset`` as the .npy archives have it: labels as float with -1 void, depth
    (H, W, 1)."""
    if kind == 'segmentation':
        return np.where(value == VOID, -1, value).astype(np.float32)
    return value[..., None] if kind == 'depth' else value


def pair_files(
    sets: Mapping[str, FileSet], made_from: Mapping[str, str], file_of: Callable[[str, int, str], Path]
) -> tuple[list[Sample], list[str]]:
    """Samples of a source with one file per sample and modality.

    Args:
        sets: {modality of the source: its files}; 'image' decides which samples there are.
        made_from: {modality to write: modality of the source}; a file is written where its source is there.
        file_of: From (modality to write, position of the sample in the order of the names, name) to the file to write.

    Returns:
        tuple: The samples, whose ``source`` is {modality of the source: file}, and one sentence per modality that
        lacks files.
    """
    found = {modality: files.paths() for modality, files in sets.items()}
    names = sorted(found['image'])
    problems = [] if names else [f'no images in {sets["image"].folder}, expected {sets["image"].expected()[0]}']
    for modality, files in sets.items():
        missing = [name for name in names if name not in found[modality]]
        if missing:
            problems.append(
                f'{len(missing)} of {len(names)} files are missing in {files.folder}, the first is '
                f'{missing[0]}{files.endings[0]}'
            )
    samples = []
    for index, name in enumerate(names):
        source = {modality: paths[name] for modality, paths in found.items() if name in paths}
        files = {made: file_of(made, index, name) for made, modality in made_from.items() if modality in source}
        samples.append(Sample(name, source, files))
    return samples, problems


def check_source(plan: Plan, allow_partial: bool) -> None:
    """Compares what the source has with the official counts.

    Raises:
        ValueError: If there are no samples at all; if something is missing and ``allow_partial`` is False.
    """
    if not plan.all_samples():
        raise ValueError('; '.join(plan.problems) or 'the source holds no samples')
    counts = [
        f'{split}: {len(plan.samples.get(split, ()))} of {count} samples'
        for split, count in plan.official.items()
        if len(plan.samples.get(split, ())) != count
    ]
    lacking = [*counts, *plan.problems]
    if lacking and not allow_partial:
        raise ValueError(f'the source is not complete: {"; ".join(lacking)}. Pass --allow-partial to convert a part')


def claim_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Makes a folder this conversion's own, so that a later run goes on with the same settings or not at all.

    Raises:
        ValueError: If the folder holds something else, or was begun with other settings.
    """
    file = folder / SETTINGS_FILE
    settings = json.loads(json.dumps(settings))
    if file.exists():
        before = json.loads(file.read_text(encoding='utf-8'))
        differing = sorted(key for key in {*before, *settings} if before.get(key) != settings.get(key))
        if differing:
            details = [
                f'{key}: {before.get(key)!r} there, {settings.get(key)!r} now' if key != 'samples' else 'other samples'
                for key in differing
            ]
            raise ValueError(
                f'{file}: the conversion was begun with other settings ({"; ".join(details)}); its files do not go '
                'together with new ones, so use another folder or remove this one'
            )
        return
    if folder.is_dir() and any(not child.name.endswith(TEMPORARY) for child in folder.iterdir()):
        raise ValueError(f'{folder} is not empty and was not made by this converter (it has no {SETTINGS_FILE})')
    with whole_file(file) as opened:
        opened.write(json.dumps(settings, indent=1).encode())


def remove_leftovers(samples: Sequence[Sample]) -> None:
    """Removes what a killed run had begun to write."""
    for folder in {path.parent for sample in samples for path in sample.files.values()}:
        for leftover in folder.glob(f'.*{TEMPORARY}') if folder.is_dir() else ():
            leftover.unlink(missing_ok=True)


_load: Callable[[Any, Sequence[str]], Mapping[str, np.ndarray]] | None = None


def _start_worker(load: Callable[[Any, Sequence[str]], Mapping[str, np.ndarray]]) -> None:
    global _load
    _load = load
    cv2.setNumThreads(0)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A main process that was killed leaves its workers waiting for ever.
    multiprocessing.parent_process().join()
    os._exit(1)


def convert_sample(load: Callable[[Any, Sequence[str]], Mapping[str, np.ndarray]], sample: Sample) -> str | None:
    """Writes the missing files of a sample; returns what was wrong with its source, None if nothing was."""
    missing = sample.missing()
    try:
        if missing:
            arrays = load(sample.source, tuple(missing))
            for name, path in missing.items():
                save_array(path, arrays[name])
    except USER_ERRORS as error:
        return str(error)
    return None


def _convert_in_worker(sample: Sample) -> str | None:
    return convert_sample(_load, sample)


def convert_all(plan: Plan, workers: int, report: Callable[[int, int], None]) -> list[str]:
    """Writes all files that are missing.

    Args:
        plan: What to convert.
        workers: Number of processes; 0 is this one.
        report: Called with the number of samples done and their number.

    Returns:
        list: What was wrong, per sample that failed; the others are converted nevertheless.

    Raises:
        ValueError: If a worker process was killed.
    """
    todo = [sample for sample in plan.all_samples() if sample.missing()]
    report(0, len(todo))
    if workers == 0 or not todo:
        results = (convert_sample(plan.load, sample) for sample in todo)
        return _gather(results, len(todo), report)
    # Not forked: the threads of OpenCV and torch do not survive that.
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(workers, context, _start_worker, (plan.load,)) as pool:
        try:
            return _gather(pool.map(_convert_in_worker, todo), len(todo), report)
        except BrokenProcessPool as error:
            raise ValueError('a worker process was killed (out of memory?); run again, it goes on from here') from error
        finally:
            # After an interrupt, not all the samples that are left.
            pool.shutdown(cancel_futures=True)


def _gather(results: Iterator[str | None], total: int, report: Callable[[int, int], None]) -> list[str]:
    failures = []
    for done, failure in enumerate(results, start=1):
        if failure is not None:
            failures.append(failure)
        report(done, total)
    return failures


class ProgressLines:
    """Prints a line now and then: readable on a terminal and in a log file."""

    def __init__(self) -> None:
        self.start = self.last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done not in (0, total) and now - self.last < SECONDS_PER_LINE:
            return
        self.last = now
        seconds = now - self.start
        left = f', about {(total - done) * seconds / done / 60:.1f} minutes left' if 0 < done < total else ''
        print(f'{done} of {total} samples in {seconds:.0f} s{left}', file=sys.stderr, flush=True)


def summarise(plan: Plan) -> list[str]:
    """One line per split: how many files of each modality are there."""
    lines = []
    for split, samples in plan.samples.items():
        names = dict.fromkeys(name for sample in samples for name in sample.files)
        counts = {name: sum(name in s.files and s.files[name].exists() for s in samples) for name in names}
        there = ', '.join(f'{name} {count}' for name, count in counts.items())
        lines.append(f'{split}: {there or "nothing"} (official count: {plan.official.get(split, "none")})')
    return lines


def parse_size(text: str) -> tuple[int, int]:
    """'288x384' as (288, 384): height and width."""
    parts = text.lower().split('x')
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f'{text!r} is not HEIGHTxWIDTH, such as 128x256')
    return int(parts[0]), int(parts[1])


def parse_arguments(description: str, size: tuple[int, int] | None, argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line of a converter; without a ``size`` samples keep theirs."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('src', type=Path, help='folder of the official download')
    parser.add_argument('dst', type=Path, help='folder to write; a second run goes on where the first one ended')
    workers = min(8, os.cpu_count() or 1)
    parser.add_argument(
        '--workers', type=int, default=workers, help=f'processes; 0 converts in this one (default: {workers})'
    )
    if size is None:
        parser.set_defaults(size=None)
    else:
        default = f'{size[0]}x{size[1]}'
        parser.add_argument('--size', type=parse_size, default=size, metavar='HxW', help=f'(default: {default})')
    parser.add_argument('--allow-partial', action='store_true', help='convert a source that is not complete')
    return parser.parse_args(argv)


def run_converter(
    description: str,
    make_plan: Callable[[Path, Path, tuple[int, int] | None], Plan],
    default_size: tuple[int, int] | None,
    argv: Sequence[str] | None = None,
) -> int:
    """A converter's main program.

    Args:
        description: For ``--help``.
        make_plan: From (source folder, folder to write, (height, width)) to what is to be done.
        default_size: (height, width), or None if samples keep their size.
        argv: Command line, None: that of the process.

    Returns:
        int: Exit status: 0 if all files are there, else 1 after one line per problem on stderr.
    """
    args = parse_arguments(description, default_size, argv)
    try:
        plan = make_plan(args.src, args.dst, args.size)
        check_source(plan, args.allow_partial)
        names = {split: [sample.name for sample in samples] for split, samples in plan.samples.items()}
        claim_folder(args.dst, dict(plan.settings) | dict(size=args.size, samples=names))
        remove_leftovers(plan.all_samples())
        failures = convert_all(plan, args.workers, ProgressLines())
    except USER_ERRORS as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    print('\n'.join(summarise(plan)))
    for failure in failures[:SHOWN_FAILURES]:
        print(f'error: {failure}', file=sys.stderr)
    if failures:
        print(f'error: {len(failures)} of {len(plan.all_samples())} samples failed', file=sys.stderr)
    return 1 if failures else 0
