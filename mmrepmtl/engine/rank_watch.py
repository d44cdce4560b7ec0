"""Ends a run in which a rank hangs, and says which rank it is; the other ranks only know that they wait."""

import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from mmengine.logging import print_log

from mmrepmtl.utils.agreement import ranks as listed

#: A rank whose innermost Python frame is in one of these modules waits for the others. It is in a collective, or in a
#: backward pass, in which DistributedDataParallel's collectives run.
WAITS_IN = (
    'torch.distributed',
    'torch.nn.parallel.distributed',
    'torch.autograd',
    'mmrepmtl.utils.agreement',
    'mmrepmtl.methods.collectives',
    'mmrepmtl.engine.gradients.rows',
    'mmrepmtl.engine.gradients.writing',
    'mmengine.dist',
)
#: With an accelerator, reading the first number waits for the collective that it comes from.
READS_IN = (
    'mmrepmtl.engine.nonfinite',
    'mmrepmtl.engine.gradients',
    'mmrepmtl.engine.task_losses',
    'mmrepmtl.engine.optim_wrapper',
    'mmengine.logging.message_hub',
)
#: Longest wait for an answer, and for the end of a rank that is to end first (s).
GRACE = 3.0

#: A rank's report about itself: its place, how long ago it changed, and its process.
RankState: TypeAlias = dict[str, Any]


class RankWatch:
    """A thread in each process that notices when this rank waits for the others too long.

    Every few seconds each rank writes its place (:attr:`at`) to the store of the process group. A rank that has waited
    for longer than ``timeout`` asks all ranks for their state. Those that do not wait, or do not answer, are missing.
    The report goes to the log and to standard error. The missing ranks print where they hang and end first, so that a
    launcher names them as the cause; then all others end. A step costs nothing, because the thread looks at the stack
    of the main thread from outside.

    Args:
        store: A store of torch.distributed that all ranks reach, through a connection of its own.
        rank: Number of this rank.
        size: Number of ranks.
        timeout: Longest time that a rank may wait for the others (s).
        end: Ends this process with a status; for tests.
        frame: Returns the innermost frame of the watched thread; for tests.

    Attributes:
        at: The place of this rank in the run, for the report; :func:`set_place` sets it.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        size: int,
        timeout: float,
        end: Callable[[int], None] = os._exit,
        frame: Callable[[], FrameType | None] | None = None,
    ) -> None:
        main = threading.main_thread().ident or 0
        self.store, self.rank, self.size, self.timeout = store, rank, size, timeout
        self._end, self._frame = end, frame or (lambda: sys._current_frames().get(main))
        self.at = 'the start of the run'
        self.period = min(2.0, max(0.05, timeout / 20))
        self._changed, self._last = time.monotonic(), self.at
        self._waits: tuple[str, int, int] | None = None
        self._since = time.monotonic()
        self._answered = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name='rank watch', daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stop.set()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    # ---- the thread ----

    def _run(self) -> None:
        try:
            while not self._stop.wait(self.period):
                if self.check_once():
                    return
        except (RuntimeError, OSError) as error:  # torch's errors about a store are RuntimeErrors
            # The process that has the store has ended. Collectives then fail by themselves.
            if not self._stop.is_set():
                print(f'rank watch of rank {self.rank}: the store is gone, so it ends: {error}', file=sys.stderr)

    def check_once(self) -> bool:
        """Checks this rank and the store once; returns whether the run was ended."""
        now = time.monotonic()
        if self.at != self._last:
            self._last, self._changed = self.at, now
        if self.store.check(['verdict']):
            self._end_run(json.loads(self.store.get('verdict')))
            return True
        waits = self._waiting_for()
        if waits is None or waits != self._waits:
            self._waits, self._since = waits, now
        if self.store.check(['reporter']):
            if not self._answered:
                self._answered = True
                self._write_state('answer')
            return False
        self._write_state('state')
        if self._waits is not None and now - self._since > self.timeout:
            if self.store.compare_set('reporter', '', str(self.rank)).decode() == str(self.rank):
                self._report_hang(now - self._since)
                return True
        return False

    def _waiting_for(self) -> tuple[str, int, int] | None:
        """Identifies the call in which the main thread waits for other ranks; None if it does not wait."""
        frame = self._frame()
        modules = WAITS_IN + READS_IN if torch.cuda.is_available() else WAITS_IN
        if frame is None or not str(frame.f_globals.get('__name__')).startswith(modules):
            return None
        return self.at, id(frame), frame.f_lasti

    def _write_state(self, key: str) -> None:
        frame = self._frame()
        state = dict(
            at=self.at,
            age=time.monotonic() - self._changed,
            time=time.time(),
            waits=self._waiting_for() is not None,
            place=describe_stack(frame),
            host=socket.gethostname(),
            pid=os.getpid(),
            parent=os.getppid(),
        )
        self.store.set(f'{key}/{self.rank}', json.dumps(state))

    # ---- the end ----

    def _report_hang(self, waited: float) -> None:
        """Collects the answers of all ranks, reports the hang, and ends the run."""
        self._answered = True
        self._write_state('answer')
        deadline = time.monotonic() + max(GRACE, 5 * self.period)
        keys = [f'answer/{rank}' for rank in range(self.size)]
        while time.monotonic() < deadline and not self.store.check(keys):
            self._stop.wait(0.05)
        states: list[RankState | None] = []
        for rank, key in enumerate(keys):
            answered = self.store.check([key])
            known = key if answered else f'state/{rank}'
            state = json.loads(self.store.get(known)) if self.store.check([known]) else None
            states.append(None if state is None else dict(state, answered=answered))
        missing = [r for r, state in enumerate(states) if state is None or not state['answered'] or not state['waits']]
        text = describe_hang(states, missing, self.rank, waited, self.timeout)
        verdict = dict(text=text, missing=missing, reporter=self.rank, states=states)
        self._log(text)
        self.store.set('verdict', json.dumps(verdict))
        self._end_run(verdict)

    def _log(self, text: str) -> None:
        print(f'\n{text}\n', file=sys.stderr, flush=True)
        print_log(text, logger='current', level=40)

    def _end_run(self, verdict: dict[str, Any]) -> None:
        """Ends this process as the reporting rank has decided: missing ranks first."""
        missing = verdict['missing']
        if self.rank in missing:
            if self.rank == 0:  # the log file is this rank's
                print_log(verdict['text'], logger='current', level=40)
            frame = self._frame()
            stack = ''.join(traceback.format_stack(frame)) if frame is not None else '  unknown\n'
            print(f'rank {self.rank} is missing at a collective; its main thread is at:\n{stack}', file=sys.stderr)
            _tell_launcher(verdict['text'])
            self.store.set(f'ended/{self.rank}', '1')
        else:
            if self.rank == 0 and verdict['reporter'] != 0:
                print_log(verdict['text'], logger='current', level=40)
            self._wait_for_end_of(missing, verdict['states'])
        sys.stderr.flush()
        sys.stdout.flush()
        self._end(1)

    def _wait_for_end_of(self, missing: Sequence[int], states: Sequence[RankState | None]) -> None:
        """Waits until the missing ranks have ended, so that a launcher names one of them as the cause."""
        deadline = time.monotonic() + GRACE
        keys = [f'ended/{rank}' for rank in missing]
        while keys and time.monotonic() < deadline and not self.store.check(keys):
            self._stop.wait(0.05)
        for rank in missing:
            state = states[rank]
            if state is None or (state['host'], state['parent']) != (socket.gethostname(), os.getppid()):
                continue  # a process that this one cannot or may not kill
            if not self.store.check([f'ended/{rank}']):
                # It runs no Python: it is stopped, or stuck in a library, and a launcher's SIGTERM has no effect.
                _kill(state['pid'])
        self._stop.wait(min(1.0, GRACE))  # a launcher looks at its processes several times a second


def describe_hang(
    states: Sequence[RankState | None], missing: Sequence[int], reporter: int, waited: float, timeout: float
) -> str:
    """Describes a hang in a few lines.

    Args:
        states: The answer of each rank, or its last state; None for a rank that never wrote one.
        missing: The ranks that the others wait for.
        reporter: The rank that reports.
        waited: Time that it has waited (s).
        timeout: The bound (s).
    """
    place = (states[reporter] or {}).get('at', 'an unknown place')
    head = f'{listed(missing)} did not arrive' if missing else 'all ranks wait for each other, in different collectives'
    lines = [
        f'{head} at {place}: rank {reporter} has waited {waited:.1f} s, and env_cfg.dist_cfg.timeout is '
        f'{timeout:g} s. All processes end now.'
    ]
    shown = [*missing, *(rank for rank in range(len(states)) if rank not in missing)][:16]
    for rank in shown:
        state = states[rank]
        if state is None:
            lines.append(f'  rank {rank}: never seen')
            continue
        age = state['age'] if state['answered'] else state['age'] + time.time() - state['time']
        role = 'waits' if rank not in missing else 'hangs' if state['answered'] else 'does not answer, and was last'
        lines.append(f'  rank {rank}: last seen in {state["at"]}, {age:.1f} s ago; {role} at {state["place"]}')
    if len(shown) < len(states):
        lines.append(f'  and {len(states) - len(shown)} more')
    return '\n'.join(lines)


def describe_stack(frame: FrameType | None, depth: int = 4) -> str:
    """Lists the innermost calls of a stack, the innermost first."""
    calls: list[str] = []
    while frame is not None and len(calls) < depth:
        calls.append(f'{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})')
        frame = frame.f_back
    return ' < '.join(calls) or 'an unknown place'


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # ended by now


def _tell_launcher(text: str) -> None:
    """Writes the report to the file in which torchrun looks for the reason that a process ended."""
    if 'TORCHELASTIC_ERROR_FILE' not in os.environ:
        return
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    try:
        raise TimeoutError(text)
    except TimeoutError as error:  # raised, so that its traceback is written too
        get_error_handler().record_exception(error)


_watch: RankWatch | None = None


def start_watch(timeout: float) -> None:
    """Starts to watch this rank, if there are several and it is not watched yet.

    Args:
        timeout: Longest time that a rank may wait for the others (s).
    """
    global _watch
    if (_watch is not None and _watch.alive) or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    # A connection of its own: while the main thread waits on a connection, nobody else can use it.
    default = dist.distributed_c10d._get_default_store()
    own = default.clone() if hasattr(default, 'clone') else default  # torch before 2.6 has no clone
    store = dist.PrefixStore('mmrepmtl_rank_watch', own)
    _watch = RankWatch(store, dist.get_rank(), dist.get_world_size(), timeout)
    _watch.start()


def stop_watch() -> None:
    """Ends the watch; call it before the process group ends."""
    global _watch
    if _watch is not None:
        _watch.stop()
        _watch = None


def set_place(text: str) -> None:
    """Sets the place of this rank in the run, for the report of a hang."""
    if _watch is not None:
        _watch.at = text
