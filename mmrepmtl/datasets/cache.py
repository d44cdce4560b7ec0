"""Decoded samples on disk, one file each, read through a memory map."""

import functools
import hashlib
import json
import mmap
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL

from mmrepmtl.utils.files import whole_file

MAGIC = b'MRMTL01\n'
ALIGNMENT = 64

# Arguments of a data set that do not change what is decoded.
_IRRELEVANT = ('cache_dir', 'indices', 'pipeline')


class SampleCache:
    """Keeps what a data set decodes, so that later epochs read it instead.

    A file is named after the class of the data set, its arguments, its targets and the sample's ``data_info``. It is
    taken only if it is whole and was made from source files of the same names, sizes and times of modification, by the
    same code and versions of the decoders; otherwise the sample is decoded anew and the file replaced. A file gets its
    name when it is complete, so any number of workers and runs may share a folder.

    Arrays are stored as they are, so a sample needs as much space on the disk as in memory (4.0 MB at 288 x 384 with
    segmentation, depth and normals), and come back bit for bit; what a transform writes into them stays in its process.
    A sample that is held keeps its file open, which counts against the system's limit of open files (often 1024).

    Args:
        folder: The folder for the files.
        owner: The class of the data set.
        arguments: Its arguments, (positional, named).
        targets: The declarations of its targets, which may come from files.

    Raises:
        ValueError: If the arguments are not those of a config: numbers, texts, lists and dicts.
    """

    def __init__(self, folder: str | os.PathLike, owner: type, arguments: tuple, targets: Mapping) -> None:
        self.folder = Path(folder).expanduser()
        self.owner = owner.__qualname__
        positional, named = arguments
        named = {name: value for name, value in named.items() if name not in _IRRELEVANT}
        try:
            described = json.dumps([owner.__module__, owner.__qualname__, positional, named], sort_keys=True)
        except TypeError as error:
            raise ValueError(
                f'{self.owner}: cache_dir needs arguments that a config can hold, by which files are told apart '
                f'({error})'
            ) from error
        self.settings = hashlib.sha256(f'{described} {dict(targets)!r}'.encode()).hexdigest()[:16]
        self.code = hash_code(owner)

    def fetch(
        self, data_info: Mapping[str, Any], load: Callable[[], dict], sources: Callable[[dict], Iterable]
    ) -> dict:
        """The sample from its file, or from ``load()``, which is then stored.

        Args:
            data_info: Entry of the data list, with ``sample_idx``.
            load: Returns ``dict(img, gt, img_path, gt_paths)`` with arrays and integers.
            sources: From that sample to the names of the files that it was made from.

        Raises:
            ValueError: If the sample is made from no file, so that changes could not be noticed.
        """
        path = self.path(data_info)
        sample = read_sample(path, self.code)
        if sample is None:
            begin = time.time_ns()
            sample = load()
            states = [_state(source) for source in sources(sample)]
            if not states:
                raise ValueError(
                    f'{self.owner}: cache_dir cannot be used, because no file that sample '
                    f'{data_info.get("sample_idx")} is made from is known, so a change would go unnoticed; a wrapper '
                    'leaves cache_dir to the data sets inside, others override source_files'
                )
            # A file that changed while it was read is left for another time.
            if all(modified < begin for *_, modified in states):
                write_sample(path, sample, self.code, states)
        return sample

    def path(self, data_info: Mapping[str, Any]) -> Path:
        """The file of a sample."""
        name = hashlib.sha256(repr(data_info).encode()).hexdigest()[:32]
        return self.folder / f'{self.owner}-{self.settings}' / name[:2] / f'{name}.sample'


def hash_code(owner: type) -> str:
    """A hash of the source files of this package's data sets and of a class, and of the decoders' versions."""
    files = set(Path(__file__).parent.rglob('*.py'))
    for cls in owner.__mro__[:-1]:
        file = getattr(sys.modules.get(cls.__module__), '__file__', None)
        if file is not None:
            files.add(Path(file))
    digest = hashlib.sha256(f'{cv2.__version__} {np.__version__} {PIL.__version__}'.encode())
    for file in sorted(files):
        digest.update(_hash_file(file))
    return digest.hexdigest()[:16]


@functools.cache
def _hash_file(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def _state(path: str) -> tuple[str, int, int]:
    status = os.stat(path)
    return path, status.st_size, status.st_mtime_ns


def write_sample(path: Path, sample: Mapping[str, Any], code: str, states: list[tuple[str, int, int]]) -> None:
    """Writes a sample: magic, length of the header, header as JSON, arrays.

    Raises:
        ValueError: For a value that is neither a numeric array nor an integer.
    """
    arrays, entries, offset = [], [], 0
    for name, value in dict(img=sample['img'], **{f'gt/{name}': value for name, value in sample['gt'].items()}).items():
        if isinstance(value, int | np.integer):
            entries.append(dict(name=name, value=int(value)))
            continue
        if not isinstance(value, np.ndarray) or value.dtype.hasobject:
            raise ValueError(f'{sample["img_path"]}: {name} is {type(value).__name__}, which a cache cannot hold')
        entries.append(dict(name=name, dtype=value.dtype.str, shape=value.shape, offset=offset))
        arrays.append((offset, np.ascontiguousarray(value)))
        offset += _aligned(value.nbytes)
    paths = dict(img_path=str(sample['img_path']), gt_paths={k: str(v) for k, v in sample['gt_paths'].items()})
    header = json.dumps(dict(code=code, sources=states, entries=entries, size=offset, **paths)).encode()
    start = _aligned(len(MAGIC) + 8 + len(header))
    with whole_file(path) as file:
        file.write(MAGIC + len(header).to_bytes(8, 'little') + header)
        for begin, array in arrays:
            file.seek(start + begin)
            file.write(array.data)
        file.truncate(start + offset)


def read_sample(path: Path, code: str) -> dict | None:
    """The sample of a file, None if there is none that is whole, current and of the same code."""
    try:
        with open(path, 'rb') as file:
            # Copy on write: what a transform does in place stays in this process.
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        length = int.from_bytes(memory[len(MAGIC) : len(MAGIC) + 8], 'little')
        end = len(MAGIC) + 8 + length
        header = json.loads(memory[len(MAGIC) + 8 : end])
        start = _aligned(end)
        if memory[: len(MAGIC)] != MAGIC or len(memory) != start + header['size'] or header['code'] != code:
            return None
        if any(list(_state(source[0])) != source for source in header['sources']):
            return None
    # A damaged file is none, whatever is wrong with it.
    except (OSError, ValueError, KeyError, TypeError):
        return None
    values = {}
    for entry in header['entries']:
        if 'value' in entry:
            values[entry['name']] = entry['value']
            continue
        shape, dtype = tuple(entry['shape']), np.dtype(entry['dtype'])
        values[entry['name']] = np.ndarray(shape, dtype, memory, start + entry['offset'])
    gt = {name.removeprefix('gt/'): value for name, value in values.items() if name != 'img'}
    return dict(img=values['img'], gt=gt, img_path=header['img_path'], gt_paths=header['gt_paths'])


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
