"""Checkpoints are data: they are read whole and without running anything in them, or refused in one line.

Each reader of this package goes through :func:`read_checkpoint`, and so do those of mmengine
(``mmrepmtl.engine.schemes``). It needs torch alone.
"""

import hashlib
import logging
import os
import re
import stat
import tarfile
import threading
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from io import BufferedReader
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from torch import Tensor

from mmrepmtl.utils.pickle_names import foreign_objects, modern
from mmrepmtl.utils.plain_data import allowed_globals, settle

#: The keys under which checkpoints of common trainers keep the weights.
_NESTS = ('state_dict', 'model', 'model_state_dict')
_CHUNK = 1 << 22
#: The attribute of a folder in a zip archive, as in MS-DOS.
_FOLDER = 0x10
_WAY_ROUND = (
    'if you trust where the file comes from, pass --trust-checkpoint (in Python, load it within '
    'mmrepmtl.utils.checkpoint.trust_checkpoints())'
)

_logger = logging.getLogger(__name__)
_trusted: ContextVar[bool] = ContextVar('trusted', default=False)
# torch keeps what is allowed in one set for the whole process.
_torch_load_lock = threading.Lock()


class CheckpointError(ValueError):
    """A file that is damaged, holds more than data, or is no checkpoint; one line that names the file."""


class MissingCheckpointError(CheckpointError, FileNotFoundError):
    """There is no such file."""


@contextmanager
def trust_checkpoints(trust: bool = True) -> Iterator[None]:
    """Within it, checkpoints may hold anything, and loading one runs what it holds: for files of one's own only.

    It reaches all that is read within the ``with`` block in this thread, by mmengine and mmseg as well.

    Args:
        trust: False leaves things as they are.
    """
    token = _trusted.set(trust or _trusted.get())
    try:
        yield
    finally:
        _trusted.reset(token)


def is_trusted() -> bool:
    """Whether the caller is within :func:`trust_checkpoints`."""
    return _trusted.get()


def read_checkpoint(path: str | Path, map_location: Any = 'cpu', trust: bool = False, sha256: str | None = None) -> Any:
    """Reads a file of ``torch.save``, or a ``.safetensors`` file.

    The checksums of all parts of the file are compared first. The old format (PyTorch < 1.6) and safetensors have none:
    a warning says that damage to their numbers goes unnoticed.

    Args:
        path: The file.
        map_location: The device of the tensors, as for ``torch.load``.
        trust: Load anything, code included, because the user said so; so does :func:`trust_checkpoints`.
        sha256: Checksum of the whole file, in hexadecimal digits. Another file is refused before anything is read.

    Returns:
        Its content: tensors, numbers, text, plain containers, NumPy arrays and numbers, log buffers of mmengine. A
        ``defaultdict`` or a ``ConfigDict`` becomes a dict.

    Raises:
        MissingCheckpointError: There is no such file; also a FileNotFoundError.
        CheckpointError: It is damaged or cannot be read, has another checksum, or holds something else than data; also
            a ValueError.
    """
    path, trust = Path(os.path.expanduser(path)), trust or is_trusted()
    _check_file(path)
    try:
        with open(path, 'rb') as file:
            if sha256 is not None:
                _check_sha256(path, file, sha256)
            if path.suffix == '.safetensors':
                return _read_safetensors(path, map_location, sha256 is not None)
            check = _check_records if file.read(4) == b'PK\x03\x04' else _check_old_format
            verified = check(path, file, trust)
            file.seek(0)
            content = _read_anything(path, file, map_location) if trust else _read_data(path, file, map_location)
    except OSError as error:
        raise CheckpointError(f'the checkpoint {_shown(path)} cannot be read: {_shown(error)}') from error
    if not verified and sha256 is None:
        _warn_of_no_checksum(path)
    return content


def load_checkpoint(path: str | Path, trust: bool = False) -> dict:
    """Loads a checkpoint of mmengine on the CPU.

    Args:
        path: The file.
        trust: Load anything, code included, because the user said so.

    Raises:
        MissingCheckpointError: If there is no such file.
        CheckpointError: If the file is damaged, holds something else than a checkpoint, or needs code to be run.
    """
    checkpoint = read_checkpoint(path, trust=trust)
    if not isinstance(checkpoint, dict) or 'state_dict' not in checkpoint:
        raise CheckpointError(f'{_shown(path)} is no checkpoint of mmengine: it has no state_dict')
    for key in ('state_dict', 'meta', 'message_hub', 'optimizer'):
        if not isinstance(checkpoint.get(key, {}), dict):
            kind = type(checkpoint[key]).__name__
            raise CheckpointError(f'{_shown(path)} is no checkpoint of mmengine: its {key} is no dict but of {kind}')
    strange = next((key for key in checkpoint['state_dict'] if not isinstance(key, str)), None)
    if strange is not None:
        raise CheckpointError(f'{_shown(path)} is no checkpoint of mmengine: {_shown(strange)} is no parameter name')
    return checkpoint


def read_state_dict(path: str | Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Reads weights from a local file.

    Args:
        path: A ``.safetensors`` file, or a file of ``torch.save`` that holds a state dict, also nested under
            ``state_dict``, ``model`` or ``model_state_dict`` and with DistributedDataParallel's ``module.`` prefix.
        sha256: Checksum of the file, see :func:`read_checkpoint`.

    Raises:
        MissingCheckpointError: If there is no such file.
        CheckpointError: The file is damaged, has another checksum, holds no weights, or objects that could run code
            when they are loaded.
    """
    content = read_checkpoint(path, sha256=sha256)
    for nest in _NESTS:
        if isinstance(content, dict) and isinstance(content.get(nest), dict):
            content = content[nest]
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(
            f'the checkpoint {_shown(path)} holds no state dict (parameter name -> tensor), neither at its top level '
            f'nor under one of {list(_NESTS)}'
        )
    return {str(key).removeprefix('module.'): value for key, value in content.items()}


def _check_file(path: Path) -> None:
    """Refuses what is no regular file before it is opened: opening a pipe waits for its other end."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingCheckpointError(f'there is no checkpoint {_shown(path)}') from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f'the checkpoint {_shown(path)} cannot be read: {_shown(error)}') from error
    if stat.S_ISDIR(status.st_mode):
        raise CheckpointError(f'the checkpoint {_shown(path)} is a folder; give the file')
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f'the checkpoint {_shown(path)} is a pipe, socket or device; give a file')
    if status.st_size == 0:
        raise CheckpointError(f'the checkpoint {_shown(path)} is damaged: it is empty; use an earlier one')


def _check_sha256(path: Path, file: BufferedReader, expected: str) -> None:
    found = hashlib.file_digest(file, 'sha256').hexdigest()
    if found != expected:
        raise CheckpointError(
            f'the checkpoint {_shown(path)} has the sha256 {found} and not {expected}: it is damaged or another file'
        )
    file.seek(0)


def _check_records(path: Path, file: BinaryIO, trust: bool) -> bool:
    """Compares the checksum of each record of a zip archive, which torch does not; False if it has none."""
    try:
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            names = [record.filename for record in records]
            if any(name.endswith('/constants.pkl') for name in names) and not trust:
                raise CheckpointError(_refusal(path, 'a TorchScript program'))
            if len(set(names)) < len(names):
                raise zipfile.BadZipFile('two of its records have the same name')
            if not any(record.CRC for record in records):  # torch.serialization.set_crc32_options(False)
                return False
            for record in records:
                _check_record(archive, record)
            return True
    except CheckpointError:
        raise
    # Damaged bytes raise whatever their misreading leads to, from half a dozen modules.
    except Exception as error:
        raise CheckpointError(_damage(path, error)) from error


def _check_record(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> None:
    if record.external_attr & _FOLDER:  # torch reads such a record as nothing, and leaves the memory as it is
        raise zipfile.BadZipFile(f'its record {record.filename} is marked as a folder')
    size = 0
    with archive.open(record) as stream:  # raises at the end if the checksum differs
        while chunk := stream.read(_CHUNK):
            size += len(chunk)
    stored = record.compress_type == zipfile.ZIP_STORED
    if size != record.file_size or (stored and record.compress_size != size):
        raise zipfile.BadZipFile(f'the sizes of its record {record.filename} disagree')


def _check_old_format(path: Path, file: BinaryIO, trust: bool) -> bool:
    """Refuses what is surely none; there is nothing to compare in the others, so always False."""
    file.seek(0)
    start = file.read(64)
    if start.startswith(b'version https://git-lfs'):
        raise CheckpointError(
            f'the checkpoint {_shown(path)} is a pointer of Git LFS; fetch the file with `git lfs pull`'
        )
    file.seek(0)
    try:
        # torch < 2.6 unpickles these without its restrictions.
        old_tar = start[:1] != b'\x80' and _tar_members(file)
    except Exception as error:  # as above
        raise CheckpointError(_damage(path, error)) from error
    if old_tar and not trust:
        raise CheckpointError(_refusal(path, 'a tar archive of PyTorch 0.1, which cannot be read as data alone'))
    return False


def _tar_members(file: BinaryIO) -> list[str]:
    try:
        with tarfile.open(fileobj=file, mode='r:') as archive:
            return archive.getnames()
    except tarfile.TarError:
        return []


def _read_data(path: Path, file: BinaryIO, map_location: Any) -> Any:
    try:
        with _torch_load_lock, torch.serialization.safe_globals(allowed_globals()), warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='Detected pickle protocol')
            content = torch.load(file, map_location=map_location, weights_only=True)
        return settle(content)
    except UnpicklingError as error:
        refused = _refused_object(file, str(error))
        raise CheckpointError(_refusal(path, refused) if refused else _damage(path, error)) from error
    except Exception as error:  # as above
        raise CheckpointError(_damage(path, error)) from error


def _read_anything(path: Path, file: BinaryIO, map_location: Any) -> Any:
    try:
        return torch.load(file, map_location=map_location, weights_only=False)
    except Exception as error:  # it is the file's own code that raises here
        raise CheckpointError(f'the checkpoint {_shown(path)} cannot be loaded: {_shown(error)}') from error


def _read_safetensors(path: Path, map_location: Any, verified: bool) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        content = load_file(path)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(_damage(path, error)) from error
    if not verified:
        _warn_of_no_checksum(path)
    if isinstance(map_location, str | torch.device):
        return {key: value.to(map_location) for key, value in content.items()}
    return content


def _refused_object(file: BinaryIO, reason: str) -> str | None:
    """The name of what torch, or a stand-in of ours, would not build; None where the file is just no pickle."""
    found = re.search(r'GLOBAL (\S+?)(?: |$)', reason)
    if found:
        return modern(found[1])
    found = re.search(r'unrecognized function (.+)|but got (.+)', reason)
    if found:
        return (found[1] or found[2]).splitlines()[0]
    # Pickles of another protocol than 2 end at their first instruction, before a name.
    return next(iter(foreign_objects(file)), None) if 'Unsupported operand' in reason else None


def _refusal(path: Path, what: str) -> str:
    return (
        f'the checkpoint {_shown(path)} is refused: it holds {_shown(what)}, which is more than data and could run '
        f'code (nothing was run); {_WAY_ROUND}'
    )


def _damage(path: Path, error: BaseException) -> str:
    reason = _shown(error)
    if isinstance(error, MemoryError) or re.search(r'out of memory|allocate memory|deserialize object on', reason):
        return f'the checkpoint {_shown(path)} cannot be loaded: {reason}'
    if isinstance(error, KeyError | EOFError | IndexError) or 'Unsupported operand' in reason:
        reason = 'it ends early or is no file of torch.save'
    record = re.search(r"Bad CRC-32 for file '(.*?)'", reason)
    if record:
        reason = f'the checksum of its record {record[1]} is wrong'
    return f'the checkpoint {_shown(path)} is damaged or no checkpoint: {reason}; use another copy or an earlier one'


def _warn_of_no_checksum(path: Path) -> None:
    _logger.warning(
        'the checkpoint %s is of a format without checksums, so damage to its numbers goes unnoticed; torch.save of '
        'what it holds makes a file with checksums',
        _shown(path),
    )


def _shown(value: Any) -> str:
    """Text of a file, a name or an error in one line, whatever characters it has."""
    text = str(value) or type(value).__name__
    if isinstance(value, UnpicklingError):  # torch's paragraphs on what to switch off
        text = text.split('WeightsUnpickler error: ')[-1].strip().removeprefix('Weights only load failed. ')
    if isinstance(value, BaseException):
        text = text.strip().splitlines()[0][:200] if text.strip() else type(value).__name__
        if isinstance(value, KeyError | AssertionError | IndexError | TypeError | AttributeError):
            text = f'{type(value).__name__}: {text}'
    return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)
