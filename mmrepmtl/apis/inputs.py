"""Pictures to predict on: arrays, files, folders and videos, read one at a time."""

import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from mmrepmtl.apis.video import VIDEO_ENDINGS, announced, read_frames
from mmrepmtl.datasets.pictures import why_not_a_file
from mmrepmtl.datasets.readers import read_noted_image

IMAGE_ENDINGS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')
#: The most pixels of a picture or a frame, unless the caller says otherwise: predictions at its size take gigabytes.
MAX_PIXELS = 50_000_000
#: Longer names of results are cut, in bytes: file systems take 255, of which endings and temporary files need some.
LONGEST_NAME = 180

#: The types in which one or several inputs may be given.
Inputs = str | Path | np.ndarray | Sequence['str | Path | np.ndarray']


class Picture(NamedTuple):
    """One picture: (H, W, 3) float32 RGB in [0, 1], or None and the reason.

    ``name`` is that of its files, unique among the inputs; ``source`` is its path. ``video`` is the name of the video
    that it is a frame of. ``notes`` say what was decided in reading it.
    """

    name: str
    source: str
    img: np.ndarray | None
    error: str | None = None
    video: str | None = None
    fps: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """One file or array, whose pictures ``read`` gives.

    ``count`` of a video is what its header announces, ``video`` its name.
    """

    count: int
    read: Callable[[], Iterator[Picture]]
    path: Path | None = None
    video: str | None = None


def find_inputs(inputs: Inputs, max_pixels: int = MAX_PIXELS) -> list[Source]:
    """All sources, in order; a folder's images and videos (not those of its folders) by name.

    An entry with the name of an image or a video that is no file, such as a link to nothing, is a source too. Its
    picture has an error, so that nothing is left out in silence.

    Args:
        inputs: (H, W, 3) uint8 or float RGB (floats in [0, 1]), a path of an image, a video or a folder, or a sequence
            of these.
        max_pixels: The most pixels of a picture or a frame.

    Raises:
        ValueError: There is nothing to read, a folder cannot be looked into, or an array is no picture.
    """
    items = list(inputs) if isinstance(inputs, Sequence) and not isinstance(inputs, str) else [inputs]
    sources: list[Source] = []
    taken: set[str] = set()
    for number, item in enumerate(items):
        if isinstance(item, np.ndarray):
            sources.append(_from_array(item, number, taken))
            continue
        path = Path(os.path.expanduser(item))
        files = _files(path) if os.path.isdir(path) else [path]
        sources += [_from_file(file, taken, max_pixels) for file in files]
    if not sources:
        raise ValueError('there is nothing to predict on: the list of inputs is empty')
    return sources


def _files(folder: Path) -> list[Path]:
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (*IMAGE_ENDINGS, *VIDEO_ENDINGS))
    except OSError as error:
        raise ValueError(f'{folder}: cannot be looked into: {error.strerror}') from error
    if not files:
        endings = ', '.join((*IMAGE_ENDINGS, *VIDEO_ENDINGS))
        raise ValueError(f'{folder}: there is no image in this folder, and no video; the endings are {endings}')
    return files


def result_name(name: str, taken: set[str], folder: bool = False) -> str:
    """A name for the results of an input that any file system takes and that no other one has; adds it to ``taken``.

    Control characters and bytes that are no text become '_', long names are cut and end with a hash of the whole.
    Names are alike if their case is all that differs: some file systems take them for one.

    Args:
        name: The name of the input, without its ending.
        taken: Those given already, in the form in which they are compared.
        folder: Whether folders get the name (those of a video), which must not be that of a picture's file.
    """
    clean = ''.join(char if char.isprintable() and char not in '/\\' else '_' for char in name)
    stem, ending = os.path.splitext(clean)
    if folder and ending.lower() in _RESULT_ENDINGS:
        clean = f'{stem}_{ending[1:]}'
    if not clean.strip('.'):
        clean = clean.replace('.', '_')
    if len(clean.encode()) > LONGEST_NAME:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
        clean = f'{clean.encode()[:LONGEST_NAME].decode(errors="ignore")}_{digest}'
    number, unique = 1, clean
    while _compared(unique) in taken:
        number += 1
        unique = f'{clean}_{number}'
    taken.add(_compared(unique))
    return unique


_RESULT_ENDINGS = ('.png', '.npy', '.json', '.mp4')


def _compared(name: str) -> str:
    return unicodedata.normalize('NFC', name).casefold()


def _from_array(array: np.ndarray, number: int, taken: set[str]) -> Source:
    if array.ndim != 3 or array.shape[2] != 3 or not (array.dtype == np.uint8 or array.dtype.kind == 'f'):
        raise ValueError(f'input {number}: an array {array.shape} {array.dtype}, expected (H, W, 3) uint8 or float RGB')
    img = np.divide(array, 255, dtype=np.float32) if array.dtype == np.uint8 else array.astype(np.float32)
    # Written so that NaN fails it.
    if not (img.size and img.min() >= 0 and img.max() <= 1):
        raise ValueError(f'input {number}: float values must be in [0, 1]; give 0 to 255 as uint8')
    name = result_name(f'image_{number:06d}', taken)
    return Source(1, lambda: iter([Picture(name, f'array {number}', img)]))


def _from_file(path: Path, taken: set[str], max_pixels: int) -> Source:
    is_video = path.suffix.lower() in VIDEO_ENDINGS
    name = result_name(path.stem, taken, is_video)
    if is_video:
        return Source(max(announced(path), 1), partial(_read_video, path, name, max_pixels), path, name)
    return Source(1, lambda: iter([_read_image(path, name, max_pixels)]), path)


def _read_image(path: Path, name: str, max_pixels: int) -> Picture:
    reason = why_not_a_file(path)
    if reason is None:
        try:
            img, notes = read_noted_image(str(path), max_pixels)
            return Picture(name, str(path), img, notes=tuple(notes))
        except (OSError, ValueError, MemoryError, cv2.error) as error:
            reason = str(error).removeprefix(f'{path}: ') or type(error).__name__
    return Picture(name, str(path), None, reason)


def _read_video(path: Path, name: str, max_pixels: int) -> Iterator[Picture]:
    for number, frame, error, fps in read_frames(path, max_pixels):
        if error is None:
            assert frame is not None  # or there is a reason
            img = np.divide(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), 255, dtype=np.float32)
            yield Picture(f'{name}/{number:06d}', f'{path}, frame {number}', img, video=name, fps=fps)
        else:
            yield Picture(f'{name}/{number:06d}' if number else name, str(path), None, error, video=name)
