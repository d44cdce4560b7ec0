"""A video that has its name only when it is whole."""

import errno
import os
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from mmrepmtl.datasets.pictures import decoder_messages
from mmrepmtl.utils.files import open_temporary

_SMALLEST = 16
_MPEG4 = cv2.VideoWriter.fourcc(*'mp4v')


class SheetVideo:
    """Writes pictures as ``folder/NAME.mp4``.

    All have the size of the first one, cut to even numbers as players want it; others are put on paper of that size.

    Args:
        folder: The folder for the file.
        name: The name of the video.
        fps: Frames per second.
    """

    def __init__(self, folder: Path, name: str, fps: float) -> None:
        self.name, self.path, self.fps = name, folder / f'{name}.mp4', fps
        self._writer: cv2.VideoWriter | None = None
        self._temporary: Path | None = None
        self._held: BinaryIO | None = None
        self._size, self._count, self._refused = (0, 0), 0, False

    def write(self, picture: np.ndarray) -> bool:
        """Adds a picture (h, w, 3) uint8 RGB; False if OpenCV cannot write this video."""
        if self._writer is None and not self._refused:
            # The encoder aborts the process on a picture of 2 x 2 pixels.
            self._refused = min(picture.shape[:2]) < _SMALLEST
        if self._writer is None and not self._refused:
            self._open(picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2)
        if self._writer is None:
            return False
        even = picture[: self._size[0], : self._size[1]]
        if even.shape[:2] != self._size:
            paper = np.full((*self._size, 3), 255, np.uint8)
            paper[: even.shape[0], : even.shape[1]] = even
            even = paper
        self._writer.write(cv2.cvtColor(even, cv2.COLOR_RGB2BGR))
        self._count += 1
        return True

    def _open(self, height: int, width: int) -> None:
        self._size = (height, width)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Not by the name of the video, which OpenCV may not take. Open here too: that keeps it from being swept.
        self._temporary, self._held = open_temporary(self.path.with_name('video'), '.mp4')
        try:
            with decoder_messages():
                writer = cv2.VideoWriter(str(self._temporary), _MPEG4, self.fps, (width, height))
                opened = writer.isOpened()
        except (UnicodeEncodeError, cv2.error):
            opened = False
        self._writer, self._refused = (writer, False) if opened else (None, True)
        if not opened:
            self._discard()

    def _discard(self) -> None:
        """Removes the temporary file, unless it was renamed."""
        if self._temporary is not None and self._held is not None:
            self._temporary.unlink(missing_ok=True)
            self._held.close()
        self._temporary = self._held = None

    def close(self) -> None:
        """Ends the video and gives it its name.

        Raises:
            OSError: It is not whole, as on a full disk: OpenCV does not say so, but the frames are not there.
        """
        if self._writer is None or self._temporary is None:
            return
        self._writer.release()
        self._writer = None
        try:
            with decoder_messages():
                read = cv2.VideoCapture(str(self._temporary))
                there = int(read.get(cv2.CAP_PROP_FRAME_COUNT)) if read.isOpened() else 0
                read.release()
            if there != self._count:
                raise OSError(errno.EIO, f'{there} of {self._count} frames could be written', str(self.path))
            with open(self._temporary, 'rb') as file:
                os.fsync(file.fileno())
            os.replace(self._temporary, self.path)
        finally:
            self._discard()
