"""A converter's main program: its command line, its worker processes and its lines of progress."""

import argparse
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mmrepmtl.datasets.conversion.arrays import save_array
from mmrepmtl.datasets.conversion.samples import Plan, Sample, check_source, claim_folder, remove_leftovers, summarise

SECONDS_PER_LINE = 5.0
SHOWN_FAILURES = 10
# A user or a damaged source can cause these; anything else is a mistake in the code and shows its traceback.
USER_ERRORS = (ValueError, OSError, ImportError)


_load: Callable[[Any, Sequence[str]], Mapping[str, np.ndarray]]  # set in each worker process as it starts


def _start_worker(load: Callable[[Any, Sequence[str]], Mapping[str, np.ndarray]]) -> None:
    global _load
    _load = load
    cv2.setNumThreads(0)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A main process that was killed leaves its workers waiting for ever.
    parent = multiprocessing.parent_process()
    assert parent is not None  # this runs in workers only
    parent.join()
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
        plan: The samples to convert.
        workers: Number of processes; 0 is this one.
        report: Called with the number of samples done and their number.

    Returns:
        list: One error per sample that failed; the others are converted nevertheless.

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
