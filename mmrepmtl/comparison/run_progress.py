"""How far a comparison is, and how long it will take."""

import math
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

from mmrepmtl.comparison.job import LOG, tail
from mmrepmtl.comparison.results_file import STL, Row
from mmrepmtl.comparison.runs import Run

LINE_SECONDS = 300.0
"""How often a log file gets a line."""
LIVE_SECONDS = 2.0
"""How often the line of a terminal changes: it is made of files of all runs."""
_STEP = re.compile(r'(?:Epoch\(train\)\s+\[(\d+)\]|Iter\(train\)\s+)\[\s*(\d+)/(\d+)\]')
_SURE = 0.02


class Progress:
    """One line: how many runs are done, how far those at work are, the time left.

    Args:
        runs: All runs that are known now.
        further: How many are added later, when values have been chosen.
        jobs: How many run at once.
        rows: Gives the results so far, whose training times are the estimate for other seeds.
        stream: A terminal, or a file.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        further: int,
        jobs: int,
        rows: Callable[[], Sequence[Row]],
        stream: TextIO | None = None,
    ) -> None:
        self._runs, self._further, self._jobs, self._rows = list(runs), further, jobs, rows
        self._stream = sys.stdout if stream is None else stream
        self._live = self._stream.isatty()
        self._shown, self._said_at = '', -math.inf if self._live else time.monotonic()
        done = sum(run.state == 'done' for run in self._runs)
        self.say(f'{len(self._runs) + further} runs, {done} of them are done')

    def say(self, text: str) -> None:
        """Prints a line."""
        self._erase()
        print(f'{time.strftime("%H:%M:%S")} {text}', file=self._stream, flush=True)

    def add(self, runs: Sequence[Run]) -> None:
        """Takes up runs of a value that was chosen."""
        self._runs += runs
        self._further = max(0, self._further - len(runs))

    def show(self, running: Sequence[Run]) -> None:
        """Shows the progress, if it is time for it."""
        if time.monotonic() - self._said_at < (LIVE_SECONDS if self._live else LINE_SECONDS):
            return
        self._said_at = time.monotonic()
        line = self.line(running)
        if not self._live:
            self.say(line)
            return
        line = line[: shutil.get_terminal_size().columns - 1]
        if line != self._shown:
            self._erase()
            print(line, end='', file=self._stream, flush=True)
            self._shown = line

    def line(self, running: Sequence[Run]) -> str:
        """The progress as one line."""
        states = [run.state for run in self._runs]
        shares = {run.folder: fraction(run) for run in running}
        parts = [f'{states.count("done")} of {len(states) + self._further} runs done']
        parts += [f'{run.name} {100 * shares[run.folder]:.0f} %' for run in running]
        left = self._seconds_left(states, shares)
        return '; '.join(parts + ([f'about {duration(left)} left'] if left is not None else []))

    def close(self) -> None:
        """Ends the line on a terminal."""
        self._erase()

    def _erase(self) -> None:
        if self._shown:
            print('\r' + ' ' * len(self._shown) + '\r', end='', file=self._stream, flush=True)
            self._shown = ''

    def _seconds_left(self, states: Sequence[str], shares: Mapping) -> float | None:
        known = _training_times(self._rows())
        for run in self._runs:
            share = shares.get(run.folder, 0.0)
            if share > _SURE:
                known.setdefault(run.contestant.entry.label, []).append(_spent(run) / share)
        if not known:
            return None
        means = {label: math.fsum(times) / len(times) for label, times in known.items()}
        usual = math.fsum(means.values()) / len(means)
        left = self._further * usual
        for run, state in zip(self._runs, states, strict=True):
            if state != 'done':
                left += means.get(run.contestant.entry.label, usual) * (1 - shares.get(run.folder, 0.0))
        return left / self._jobs


def _training_times(rows: Sequence[Row]) -> dict[str, list[float]]:
    times = {(row.label, row.seed): row.train_seconds for row in rows if row.train_seconds}
    known: dict[str, list[float]] = {}
    for (label, _), seconds in times.items():
        known.setdefault(label, []).append(seconds)
    return known


def _spent(run: Run) -> float:
    attempts = [attempt for attempt in run.record().get('attempts', []) if attempt.get('step') == 'train']
    return math.fsum(attempt.get('seconds', time.time() - attempt['started']) for attempt in attempts)


def fraction(run: Run) -> float:
    """The share of a run's training that is done, 0 to 1, by its log."""
    if 'train' in run.record().get('steps_done', []):
        return 1.0
    found = _STEP.findall('\n'.join(tail(run.folder / LOG)))
    if not found:
        return 0.0
    epoch, step, steps = found[-1]
    share = int(step) / int(steps)
    if epoch:
        epochs = (run.contestant.settings.get('train_cfg') or {}).get('max_epochs') or int(epoch)
        share = (int(epoch) - 1 + share) / epochs
    if run.contestant.entry.method == STL:
        tasks = run.contestant.tasks
        begun = sum((run.folder / task).is_dir() for task in tasks)
        share = (max(begun, 1) - 1 + share) / len(tasks)
    return min(share, 1.0)


def duration(seconds: float) -> str:
    """A time for a person: '40 s', '12 min', '3 h 20 min'."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f'{seconds:.0f} s'
    return f'{minutes} min' if minutes < 60 else f'{minutes // 60} h {minutes % 60:02d} min'
