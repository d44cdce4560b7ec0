import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

# Ends the names of files that are not whole yet.
TEMPORARY = '.tmp'


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Opens a file for writing that gets its name only when all of it is on the disk; its folder is made if need be.

    Several processes may write one file at once: the last one to finish wins.

    Args:
        path: The file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, since a rename is one step within a file system only; unlike any other writer's name.
    temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex}{TEMPORARY}')
    try:
        with open(temporary, 'wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
