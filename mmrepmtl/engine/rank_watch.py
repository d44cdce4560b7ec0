"""Ends a run in which a rank hangs, and says which one: the others only know that they wait."""

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
from typing import Any

import torch
import torch.distributed as dist
from mmengine.logging import print_log

from mmrepmtl.utils.agreement import ranks as listed

#: A rank whose innermost Python frame is in one of these modules waits for the others: for a collective itself, or in a
#: backward pass, where DistributedDataParallel's collectives run.
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
#: With an accelerator, the first number that is read waits for the collective that it came from.
READS_IN = (
    'mmrepmtl.engine.nonfinite',
    'mmrepmtl.engine.gradients',
    'mmrepmtl.engine.task_losses',
    'mmrepmtl.engine.optim_wrapper',
    'mmengine.logging.message_hub',
)
#: How long an answer, and the end of a rank that is to end first, are waited for (s).
GRACE = 3.0


class RankWatch:
    """A thread in each process that notices when this rank waits for the others too long.

    Every rank writes what it is at (:attr:`at`) to the store that the process group was made by, every few seconds. The
    rank that has waited for longer than ``timeout`` asks all for their place; those that do not wait, or do not
    answer, are the ones that are missing. The report goes to the log and to standard error, the missing ranks print
    where they hang and end first, so that a launcher names them, then all others end. A step costs nothing: the thread
    looks at the stack of the main thread from outside.

    Args:
        store: A store of torch.distributed that all ranks reach; a connection of its own.
        rank: This one's.
        size: Number of ranks.
        timeout: How long a rank may wait for the others (s).
        end: Ends this process with a status; for tests.
        frame: Returns the innermost frame of the thread that is watched; for tests.

    Attributes:
        at: What this rank is at, for the report; whoever knows sets it.
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
        main = threading.main_thread().ident
        self.store, self.rank, self.size, self.timeout = store, rank, size, timeout
        self._end, self._frame = end, frame or (lambda: sys._current_frames().get(main))
        self.at = 'the start of the run'
        self.period = min(2.0, max(0.05, timeout / 20))
        self._changed, self._last = time.monotonic(), self.at
        self._waits: tuple | None = None
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
        """Whether the thread is at work."""
        return self._thread.is_alive()

    # ---- the thread ----

    def _run(self) -> None:
        try:
            while not self._stop.wait(self.period):
                if self.look():
                    return
        except (RuntimeError, OSError) as error:  # torch's errors about a store are RuntimeErrors
            # The process that keeps the store has ended; collectives then fail by themselves.
            if not self._stop.is_set():
                print(f'rank watch of rank {self.rank}: the store is gone, so it ends: {error}', file=sys.stderr)

    def look(self) -> bool:
        """One look at this rank and at the store; returns whether the run was ended."""
        now = time.monotonic()
        if self.at != self._last:
            self._last, self._changed = self.at, now
        if self.store.check(['verdict']):
            self._obey(json.loads(self.store.get('verdict')))
            return True
        waits = self._waiting_for()
        if waits is None or waits != self._waits:
            self._waits, self._since = waits, now
        if self.store.check(['reporter']):
            if not self._answered:
                self._answered = True
                self._put('answer')
            return False
        self._put('state')
        if self._waits is not None and now - self._since > self.timeout:
            if self.store.compare_set('reporter', '', str(self.rank)).decode() == str(self.rank):
                self._judge(now - self._since)
                return True
        return False

    def _waiting_for(self) -> tuple | None:
        """Which call the main thread waits in, or None if it waits for no other rank."""
        frame = self._frame()
        modules = WAITS_IN + READS_IN if torch.cuda.is_available() else WAITS_IN
        if frame is None or not str(frame.f_globals.get('__name__')).startswith(modules):
            return None
        return self.at, id(frame), frame.f_lasti

    def _put(self, key: str) -> None:
        frame = self._frame()
        state = dict(
            at=self.at,
            age=time.monotonic() - self._changed,
            time=time.time(),
            waits=self._waiting_for() is not None,
            place=place(frame),
            host=socket.gethostname(),
            pid=os.getpid(),
            parent=os.getppid(),
        )
        self.store.set(f'{key}/{self.rank}', json.dumps(state))

    # ---- the end ----

    def _judge(self, waited: float) -> None:
        """Collects the answers, reports, and ends the run."""
        self._answered = True
        self._put('answer')
        deadline = time.monotonic() + max(GRACE, 5 * self.period)
        keys = [f'answer/{rank}' for rank in range(self.size)]
        while time.monotonic() < deadline and not self.store.check(keys):
            self._stop.wait(0.05)
        states: list[dict | None] = []
        for rank, key in enumerate(keys):
            answered = self.store.check([key])
            known = key if answered else f'state/{rank}'
            state = json.loads(self.store.get(known)) if self.store.check([known]) else None
            states.append(None if state is None else dict(state, answered=answered))
        missing = [r for r, state in enumerate(states) if state is None or not state['answered'] or not state['waits']]
        text = report(states, missing, self.rank, waited, self.timeout)
        verdict = dict(text=text, missing=missing, reporter=self.rank, states=states)
        self._say(text)
        self.store.set('verdict', json.dumps(verdict))
        self._obey(verdict)

    def _say(self, text: str) -> None:
        print(f'\n{text}\n', file=sys.stderr, flush=True)
        print_log(text, logger='current', level=40)

    def _obey(self, verdict: dict) -> None:
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
            self._outlive(missing, verdict['states'])
        sys.stderr.flush()
        sys.stdout.flush()
        self._end(1)

    def _outlive(self, missing: Sequence[int], states: Sequence[dict | None]) -> None:
        """Waits for the end of the missing ranks, so that a launcher takes one of them for the cause."""
        deadline = time.monotonic() + GRACE
        keys = [f'ended/{rank}' for rank in missing]
        while keys and time.monotonic() < deadline and not self.store.check(keys):
            self._stop.wait(0.05)
        for rank in missing:
            state = states[rank]
            here = state and (state['host'], state['parent']) == (socket.gethostname(), os.getppid())
            if here and not self.store.check([f'ended/{rank}']):
                # It runs no Python: stopped, or stuck in a library. A launcher's SIGTERM would be waited for in vain.
                _kill(state['pid'])
        self._stop.wait(min(1.0, GRACE))  # a launcher looks at its processes several times a second


def report(states: Sequence[dict | None], missing: Sequence[int], reporter: int, waited: float, timeout: float) -> str:
    """What is known of the hang, in a few lines.

    Args:
        states: What each rank answered or last wrote; None for one that never did.
        missing: The ranks that the others wait for.
        reporter: The rank that speaks.
        waited: How long it has waited (s).
        timeout: The bound (s).
    """
    mine = states[reporter]
    head = f'{listed(missing)} did not arrive' if missing else 'all ranks wait for each other, in different collectives'
    lines = [
        f'{head} at {mine["at"]}: rank {reporter} has waited {waited:.1f} s, and env_cfg.dist_cfg.timeout is '
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


def place(frame: FrameType | None, depth: int = 4) -> str:
    """The innermost calls of a stack, the innermost first."""
    calls = []
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
    """Leaves the report where torchrun looks for the reason of a process's end."""
    if 'TORCHELASTIC_ERROR_FILE' not in os.environ:
        return
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    try:
        raise TimeoutError(text)
    except TimeoutError as error:  # raised, so that its traceback is written too
        get_error_handler().record_exception(error)


_watch: RankWatch | None = None


def start_watch(timeout: float) -> None:
    """Watches this rank from now on, if there are several and it is not watched yet.

    Args:
        timeout: How long a rank may wait for the others (s).
    """
    global _watch
    if (_watch is not None and _watch.alive) or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    # A connection of its own: one that the main thread waits on serves nobody else.
    default = dist.distributed_c10d._get_default_store()
    own = default.clone() if hasattr(default, 'clone') else default  # torch before 2.6 has no clone
    store = dist.PrefixStore('mmrepmtl_rank_watch', own)
    _watch = RankWatch(store, dist.get_rank(), dist.get_world_size(), timeout)
    _watch.start()


def stop_watch() -> None:
    """Ends the watch; the process group may then end."""
    global _watch
    if _watch is not None:
        _watch.stop()
        _watch = None


def now_at(text: str) -> None:
    """Says what this rank is at, for the report of a hang."""
    if _watch is not None:
        _watch.at = text
