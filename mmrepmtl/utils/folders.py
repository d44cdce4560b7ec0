import os
import tempfile
from pathlib import Path


def check_writable(folder: str | os.PathLike, what: str = '', make: bool = True) -> Path:
    """Tries to write into a folder before work is done whose result would not be kept.

    Args:
        folder: The folder.
        what: How the message calls it, for example 'the work directory'.
        make: Make it if need be; else the folder is tried in which it would be made.

    Raises:
        ValueError: It cannot be made or written to; says which and why.
    """
    folder = Path(folder)
    name = f'{what} {folder}' if what else f'{folder}:'
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        tried = next((path for path in (folder, *folder.absolute().parents) if os.path.lexists(path)), folder)
        with tempfile.TemporaryFile(dir=tried) as file:
            # An empty file can be made on a full disk.
            file.write(b'\0')
    except OSError as error:
        barrier = next((path for path in (folder, *folder.parents) if os.path.isfile(path)), None)
        if barrier is not None:
            raise ValueError(f'{name} cannot be written to, since {barrier} is a file') from error
        if os.path.islink(folder) and not os.path.exists(folder):
            raise ValueError(f'{name} is a link to a folder that is not there; give another folder') from error
        raise ValueError(f'{name} cannot be written to: {error.strerror or error}; give another one') from error
    return folder
