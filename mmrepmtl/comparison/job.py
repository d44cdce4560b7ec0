"""One run of a comparison, as the process that submitit starts sees it: its commands, one after the other.

This file imports the standard library only and is sent to that process as a whole: a process that waits for a training
needs neither torch nor the memory for it.
"""

import contextlib
import datetime
import enum
import fcntl
import json
import os
import resource
import signal
import subprocess
import time
from pathlib import Path
from typing import IO, Any

RECORD = 'run.json'
LOG = 'run.log'
CLAIM = '.claim'
LAST_CHECKPOINT = 'last_checkpoint'
CHECKPOINT = '{checkpoint}'
"""Stands in a command for the checkpoint that its run has written last."""
POLL_SECONDS = 0.5
_PROVENANCE = ('commit', 'versions')
"""May be others when a run goes on than when it began."""


class RunJob:
    """Runs the commands of one run in its folder and keeps a record of them in ``run.json``.

    Every command is a process in a session of its own, so that a Ctrl-C in the terminal does not reach it twice. It is
    asked to stop once, by SIGTERM, when the comparison that started it is gone or wants to end: a training then writes
    a checkpoint. A lock on the folder, which the commands inherit, says that a run is at work, whoever started it.

    Args:
        spec: ``folder``; ``steps``, a list of ``dict(name, command)``; ``env``, what differs in the environment;
            ``cwd``; ``alive``, a file that the comparison holds locked as long as the run shall go on, or None;
            ``about``, what the record says besides; its ``commit`` and ``versions`` go to each attempt.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self._process: subprocess.Popen[bytes] | None = None
        self._record: dict[str, Any] = {}

    def __call__(self) -> str:
        """Returns 'done', 'failed', 'interrupted' or, if another process is at work in the folder, 'busy'."""
        folder = Path(self.spec['folder'])
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / CLAIM, 'a') as claim:
            if take(claim) is Lock.BUSY:
                return 'busy'
            self._record = self._begin(folder)
            state = 'done'
            for step in self.spec['steps']:
                if step['name'] in self._record['steps_done']:
                    continue
                state = self._run(step, folder, claim.fileno())
                if state != 'done':
                    break
                self._record['steps_done'].append(step['name'])
                self._write(folder)
            finished = datetime.datetime.now().astimezone().isoformat(timespec='seconds')
            self._record |= dict(state=state) | (dict(finished=finished) if state == 'done' else {})
            self._write(folder)
            return state

    def checkpoint(self) -> Any:
        """Called by submitit when Slurm takes the node: the run goes on when it gives another."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it has just ended
                os.kill(self._process.pid, signal.SIGTERM)
                # Popen's own wait may be interrupted by this very call, with its lock held.
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(RunJob(self.spec))

    def _begin(self, folder: Path) -> dict[str, Any]:
        try:
            record = json.loads((folder / RECORD).read_text(encoding='utf-8'))
        except (OSError, ValueError):
            record = {}
        before = record
        record = dict(attempts=[], steps_done=[]) | record | self.spec['about'] | dict(state='running')
        for attempt in record['attempts']:
            for key in _PROVENANCE:  # an older record says it once for all attempts
                if key not in attempt and key in before:
                    attempt[key] = before[key]
            if 'seconds' not in attempt:  # killed: its last word was its end
                log = folder / LOG
                end = log.stat().st_mtime if log.is_file() else attempt['started']
                attempt |= dict(seconds=max(end - attempt['started'], 0.0), state='killed')
        self._record = record
        self._write(folder)
        return record

    def _run(self, step: dict[str, Any], folder: Path, claim: int) -> str:
        command = [self._fill(part, folder) for part in step['command']]
        attempt: dict[str, Any] = dict(step=step['name'], started=time.time(), pid=os.getpid())
        attempt |= {key: self.spec['about'][key] for key in _PROVENANCE if key in self.spec['about']}
        self._record['attempts'].append(attempt)
        self._write(folder)
        with open(folder / LOG, 'ab') as log:
            log.write(f'$ {" ".join(command)}\n'.encode())
            log.flush()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.spec['cwd'],
                env=os.environ | self.spec['env'],
                start_new_session=True,
                pass_fds=(claim,),
                preexec_fn=_leave_to_the_job,
            )
            code, asked = self._wait(self._process)
        attempt |= dict(
            seconds=time.time() - attempt['started'],
            status=code,
            # KiB, the largest child so far: the training, which comes first.
            max_rss_mib=resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        )
        if code == 0:
            attempt['state'] = 'done'
        else:
            attempt['state'] = 'interrupted' if asked or code in _INTERRUPTED else 'failed'
        self._write(folder)
        return attempt['state']

    def _wait(self, process: subprocess.Popen[bytes]) -> tuple[int, bool]:
        """The status of the process, and whether it was asked to stop."""
        asked = False
        while True:
            try:
                return process.wait(POLL_SECONDS), asked
            except subprocess.TimeoutExpired:
                if not asked and self.spec['alive'] is not None and is_gone(self.spec['alive']):
                    asked = True
                    process.send_signal(signal.SIGTERM)

    def _fill(self, part: str, folder: Path) -> str:
        if part != CHECKPOINT:
            return part
        file = folder / LAST_CHECKPOINT
        named = Path(file.read_text(encoding='utf-8').strip()) if file.is_file() else None
        if named is None:
            return str(folder / 'no checkpoint was written; set default_hooks.checkpoint')
        return str(named if named.is_file() else folder / named.name)  # a folder may have been moved

    def _write(self, folder: Path) -> None:
        temporary = folder / f'.{RECORD}.{os.getpid()}'
        temporary.write_text(json.dumps(self._record, indent=1) + '\n', encoding='utf-8')
        os.replace(temporary, folder / RECORD)


# Statuses of a run that a signal stopped, with a checkpoint: 128 and the signal, as InterruptHook ends it.
_INTERRUPTED = tuple(128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1))


def _leave_to_the_job() -> None:
    """Slurm announces the end of a job to all of its processes; this one acts on it."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


class Lock(enum.Enum):
    """The outcome of :func:`take`; NONE: the file system has no locks, as some of clusters."""

    TAKEN, BUSY, NONE = 'taken', 'busy', 'none'


def take(file: IO[str]) -> Lock:
    """Locks an open file for this process and its children, or says that another one holds it.

    :func:`is_free` holds a lock for an instant, which is no reason to give up: a run waits for it a second.
    """
    for attempt in range(_ATTEMPTS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return Lock.TAKEN
        except BlockingIOError:
            if attempt + 1 < _ATTEMPTS:
                time.sleep(1 / _ATTEMPTS)
        except OSError:
            return Lock.NONE
    return Lock.BUSY


_ATTEMPTS = 20


def is_free(path: str | os.PathLike) -> bool:
    """Whether no process holds a lock on a file; also if there is no such file, or no lock on this file system."""
    return _look(path) is not Lock.BUSY


def is_gone(path: str | os.PathLike) -> bool:
    """Whether the process has ended that holds a lock on a file and removes it at its end.

    Where there are no locks, the file alone says it: the end of a process that was killed is not noticed.
    """
    return _look(path) is Lock.TAKEN or not os.path.exists(path)


def _look(path: str | os.PathLike) -> Lock:
    try:
        with open(path, encoding='utf-8') as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return Lock.TAKEN
    except BlockingIOError:
        return Lock.BUSY
    except OSError:
        return Lock.NONE


def tail(file: str | os.PathLike) -> list[str]:
    """The last lines of a log that are not empty; none if there is no file."""
    try:
        with open(file, 'rb') as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = log.read().decode(errors='replace')
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()]


_TAIL_BYTES = 20_000
