import fcntl
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

# Ends the names of files that are not whole yet.
TEMPORARY = '.tmp'
_NAME = re.compile(rf'\.(.*\.)?[0-9a-f]{{32}}{re.escape(TEMPORARY)}(\.[a-z0-9]+)?')
# Longest name of a file, in bytes, less what a temporary one has besides.
_ROOM = 255 - len(f'..{uuid.uuid4().hex}{TEMPORARY}')


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Opens a file for writing that gets its name only when all of it is on the disk; its folder is made if need be.

    Several processes may write one file at once: the last one to finish wins. :func:`sweep_temporary`
    removes the files of killed processes.

    Args:
        path: The file.

    Raises:
        OSError: If it cannot be written, a full disk included; names the file, which is then as it was before.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, file = open_temporary(path)
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.filename is None and error.errno is not None:  # a failed write names no file
            error.filename = str(path)
        raise


def open_temporary(path: Path, ending: str = '') -> tuple[Path, BinaryIO]:
    """A new file in the same folder, since a rename is one step within a file system only.

    :func:`sweep_temporary` lets it be for as long as it is open.

    Args:
        path: The file that it will be.
        ending: Further ending of its name, such as '.mp4', for writers that go by it.

    Returns:
        Its path and the file, open for writing; the caller closes it, and renames or removes it.
    """
    start = path.name.encode()[: _ROOM - len(ending)].decode(errors='ignore')
    while True:
        temporary = path.with_name(f'.{start}.{uuid.uuid4().hex}{TEMPORARY}{ending}')
        file = open(temporary, 'xb')  # noqa: SIM115 - the caller closes it
        # The lock says that the writer lives; the system releases it, however the writer ends.
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        # It may have been swept between its making and its locking.
        if os.fstat(file.fileno()).st_nlink:
            return temporary, file
        file.close()


def sync_folder(folder: str | os.PathLike) -> None:
    """Makes the renames in a folder survive a loss of power, where the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sweep_temporary(folder: str | os.PathLike) -> list[Path]:
    """Removes what killed writers left in a folder, of :func:`whole_file` or :func:`open_temporary`.

    Files that are being written stay.

    Returns:
        The files that were removed.
    """
    removed = []
    for file in sorted(Path(folder).glob(f'.*{TEMPORARY}*')):
        if not _NAME.fullmatch(file.name):
            continue
        # Another process may sweep too, and a folder may be one that this one cannot change.
        with suppress(OSError), open(file, 'rb') as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.unlink()
            removed.append(file)
    return removed
