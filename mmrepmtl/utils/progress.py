"""Progress for a person: a bar that is drawn over on a terminal, plain lines elsewhere."""

import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

from mmrepmtl.utils.text import one_line

_BAR = 24
#: Seconds between two drawings of a bar.
_PAUSE = 0.2


class Progress:
    """Shows how far a loop is and how long it will still take.

    Args:
        label: Name of the loop.
        total: Number of its steps; 0 where nobody knows, and then there is no time left to tell.
        start: Steps that were done before, by an earlier process for example; they took none of this one's time.
        lines: Number of plain lines where the output is no terminal.
        stream: The output, by default ``sys.stdout``.
        clock: Returns seconds.
    """

    def __init__(
        self,
        label: str,
        total: int,
        start: int = 0,
        lines: int = 10,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.label, self.total, self.start = label, total, start
        self._stream = sys.stdout if stream is None else stream
        self._terminal = self._stream.isatty()
        self._clock, self._began = clock, clock()
        self._every = max(1, (total - start) // lines)
        self._done, self._drawn_at, self._width = start, float('-inf'), 0

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._began

    def is_due(self, done: int) -> bool:
        """Whether :meth:`update` would show something, so that a note need not be made for nothing."""
        if self._terminal:
            return done >= self.total > 0 or self._clock() - self._drawn_at >= _PAUSE
        return (done - self.start) % self._every == 0 or done == self.total

    def update(self, done: int, note: str = '') -> None:
        """Shows that ``done`` steps are done, where that is due.

        Args:
            done: Number of steps, with those before the start.
            note: Further words, for example a loss.
        """
        self._done = done
        if not self.is_due(done):
            return
        parts = [f'{self.label} {self._share(done)}', self._left(done), note]
        line = one_line(', '.join(part for part in parts if part))
        if not self._terminal:
            print(line, file=self._stream, flush=True)
            return
        if self.total > 0:
            full = _BAR * done // self.total
            line = f'[{"#" * full}{"." * (_BAR - full)}] {line}'
        line = line[: shutil.get_terminal_size().columns - 1]
        print(f'\r{line.ljust(self._width)}', end='', file=self._stream, flush=True)
        self._drawn_at, self._width = self._clock(), len(line)

    def step(self, note: str = '') -> None:
        """One more step is done."""
        self.update(self._done + 1, note)

    def close(self) -> None:
        """Ends the line of a bar."""
        if self._width:
            print(file=self._stream, flush=True)
            self._width = 0

    def _share(self, done: int) -> str:
        return f'{done} of {self.total} ({100 * done // self.total} %)' if self.total > 0 else str(done)

    def _left(self, done: int) -> str:
        if done >= self.total > 0:
            return f'took {duration(self.elapsed)}'
        if self.total <= 0 or done <= self.start:
            return ''
        return f'{duration(self.elapsed / (done - self.start) * (self.total - done))} left'


def duration(seconds: float) -> str:
    """A time for people: '9 s', '4:05 min', '2:30 h'."""
    seconds = round(seconds)
    if seconds < 60:
        return f'{seconds} s'
    minutes, seconds = divmod(seconds, 60)
    return f'{minutes}:{seconds:02} min' if minutes < 60 else f'{minutes // 60}:{minutes % 60:02} h'
