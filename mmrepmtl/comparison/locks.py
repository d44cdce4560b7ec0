"""One comparison at a time in a folder, and a sign of life that its runs look at."""

import fcntl
import os
import socket
import uuid
from pathlib import Path

LOCK = '.compare.lock'
ALIVE = '.compare.alive'


class FolderLock:
    """Holds the folder of a comparison as long as this process lives, however it ends.

    Args:
        folder: The folder.

    Raises:
        ValueError: Another comparison is at work in it; says which.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / LOCK, 'a+', encoding='utf-8')  # noqa: SIM115 - held as long as this object
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            who = self._file.read().strip() or 'another process'
            self._file.close()
            raise ValueError(
                f'another compare is at work in {folder} ({who}); wait for it, stop it, or take another --work-dir'
            ) from None
        self._file.truncate(0)
        self._file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
        self._file.flush()
        # A file of its own: the next comparison may hold the lock before a run has seen that it was free.
        for old in folder.glob(f'{ALIVE}.*'):
            old.unlink(missing_ok=True)
        self.alive = folder / f'{ALIVE}.{uuid.uuid4().hex}'
        self._alive = open(self.alive, 'w', encoding='utf-8')  # noqa: SIM115
        fcntl.flock(self._alive, fcntl.LOCK_EX)

    def stop_runs(self) -> None:
        """Has the runs of this comparison write their checkpoints and end."""
        self.alive.unlink(missing_ok=True)
        self._alive.close()

    def release(self) -> None:
        """Gives the folder to the next one."""
        self.stop_runs()
        self._file.close()
