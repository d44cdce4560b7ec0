"""One comparison at a time in a folder, and a sign of life that its runs look at."""

import logging
import os
import socket
import uuid
from pathlib import Path

from mmengine.logging import print_log

from mmrepmtl.comparison.job import Lock, take

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
        found = take(self._file)
        if found is Lock.BUSY:
            self._file.seek(0)
            who = self._file.read().strip() or 'another process'
            self._file.close()
            raise ValueError(
                f'another compare is at work in {folder} ({who}); wait for it, stop it, or take another --work-dir'
            )
        if found is Lock.NONE:
            print_log(
                f'{folder}: this file system has no locks (flock), so a second compare here is not noticed, nor by the '
                'runs that this one was killed; start no second one',
                'current',
                logging.WARNING,
            )
        self._file.truncate(0)
        self._file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
        self._file.flush()
        # A file of its own: the next comparison may hold the lock before a run has seen that it was free.
        for old in folder.glob(f'{ALIVE}.*'):
            old.unlink(missing_ok=True)
        self.alive = folder / f'{ALIVE}.{uuid.uuid4().hex}'
        self._alive = open(self.alive, 'w', encoding='utf-8')  # noqa: SIM115
        take(self._alive)

    def stop_runs(self) -> None:
        """Has the runs of this comparison write their checkpoints and end."""
        self.alive.unlink(missing_ok=True)
        self._alive.close()

    def release(self) -> None:
        """Gives the folder to the next one."""
        self.stop_runs()
        self._file.close()
