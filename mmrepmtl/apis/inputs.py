"""Pictures to predict on: arrays, files, folders and videos, read one at a time."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from mmrepmtl.datasets.readers import read_picture_image

IMAGE_ENDINGS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')
VIDEO_ENDINGS = ('.mp4', '.avi', '.mov', '.mkv', '.m4v', '.webm')

#: What one or several inputs may be given as.
Inputs = str | Path | np.ndarray | Sequence['str | Path | np.ndarray']


class Picture(NamedTuple):
    """One picture: (H, W, 3) float32 RGB in [0, 1], or None and the reason.

    ``name`` is that of its files, unique among the inputs; ``source`` is for people. ``video`` is the name of the video
    that it is a frame of.
    """

    name: str
    source: str
    img: np.ndarray | None
    error: str | None = None
    video: str | None = None
    fps: float = 0.0


class Source(NamedTuple):
    """One file or array, whose pictures ``read`` gives; ``count`` of a video is what its header announces."""

    count: int
    read: Callable[[], Iterator[Picture]]
    path: Path | None = None


def find_inputs(inputs: Inputs) -> list[Source]:
    """All sources, in order; a folder's images (not those of its folders) by name.

    Args:
        inputs: (H, W, 3) uint8 or float RGB (floats in [0, 1]), a path of an image, a video or a folder, or a sequence
            of these.

    Raises:
        ValueError: There is nothing to read, or an array is no picture.
    """
    items = list(inputs) if isinstance(inputs, Sequence) and not isinstance(inputs, str) else [inputs]
    sources: list[Source] = []
    taken: set[str] = set()
    for number, item in enumerate(items):
        if isinstance(item, np.ndarray):
            sources.append(_from_array(item, number, taken))
            continue
        path = Path(item).expanduser()
        if path.is_dir():
            sources += [_from_file(file, taken) for file in _images(path)]
        else:
            sources.append(_from_file(path, taken))
    if not sources:
        raise ValueError('there is nothing to predict on: the list of inputs is empty')
    return sources


def _images(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_ENDINGS and path.is_file())
    if not files:
        raise ValueError(f'{folder}: there is no image in this folder; the endings are {", ".join(IMAGE_ENDINGS)}')
    return files


def _unique(name: str, taken: set[str]) -> str:
    """The name, with a number where it is taken: a.jpg and a.png must not write the same file."""
    number, unique = 1, name
    while unique in taken:
        number += 1
        unique = f'{name}_{number}'
    taken.add(unique)
    return unique


def _from_array(array: np.ndarray, number: int, taken: set[str]) -> Source:
    if array.ndim != 3 or array.shape[2] != 3 or not (array.dtype == np.uint8 or array.dtype.kind == 'f'):
        raise ValueError(f'input {number}: an array {array.shape} {array.dtype}, expected (H, W, 3) uint8 or float RGB')
    img = np.divide(array, 255, dtype=np.float32) if array.dtype == np.uint8 else array.astype(np.float32)
    # Written so that NaN fails it.
    if not (img.size and img.min() >= 0 and img.max() <= 1):
        raise ValueError(f'input {number}: float values must be in [0, 1]; give 0 to 255 as uint8')
    name = _unique(f'image_{number:06d}', taken)
    return Source(1, lambda: iter([Picture(name, f'array {number}', img)]))


def _from_file(path: Path, taken: set[str]) -> Source:
    name = _unique(path.stem, taken)
    if path.suffix.lower() in VIDEO_ENDINGS:
        return Source(max(_announced(path), 1), lambda: _read_video(path, name), path)
    return Source(1, lambda: iter([_read_image(path, name)]), path)


def _read_image(path: Path, name: str) -> Picture:
    try:
        return Picture(name, str(path), read_picture_image(str(path)))
    except FileNotFoundError:
        return Picture(name, str(path), None, 'there is no such file')
    except (OSError, ValueError, cv2.error) as error:
        return Picture(name, str(path), None, str(error).removeprefix(f'{path}: ').splitlines()[0])


def _announced(path: Path) -> int:
    video = cv2.VideoCapture(str(path)) if path.is_file() else None
    return int(video.get(cv2.CAP_PROP_FRAME_COUNT)) if video is not None and video.isOpened() else 0


def _read_video(path: Path, name: str) -> Iterator[Picture]:
    """The frames; then an error, if there are clearly fewer of them than announced."""
    if not path.is_file():
        yield Picture(name, str(path), None, 'there is no such file')
        return
    video = cv2.VideoCapture(str(path))
    try:
        fps, announced, number = video.get(cv2.CAP_PROP_FPS) or 25.0, int(video.get(cv2.CAP_PROP_FRAME_COUNT)), 0
        while True:
            there, frame = video.read()
            if not there:
                break
            img = np.divide(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), 255, dtype=np.float32)
            yield Picture(f'{name}/{number:06d}', f'{path}, frame {number}', img, video=name, fps=fps)
            number += 1
    finally:
        video.release()
    if number == 0:
        yield Picture(name, str(path), None, 'cannot be read as a video')
    # Containers without an index only estimate the number.
    elif number < announced - max(1, announced // 100):
        reason = f'the video ends after {number} of the {announced} frames that it announces'
        yield Picture(f'{name}/{number:06d}', str(path), None, reason, video=name)
