"""Frames of a video that may be damaged, cut off, or not one at all."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import cv2
import numpy as np

from mmrepmtl.datasets.pictures import decoder_messages, why_not_a_file

VIDEO_ENDINGS = ('.mp4', '.avi', '.mov', '.mkv', '.m4v', '.webm')
#: The rate for a video whose header names none, and the highest that is believed.
USUAL_FPS, HIGHEST_FPS = 25.0, 1000.0

_DECODERS = re.compile(r'\[[\w, ]+ @ 0x|OpenCV|VIDEOIO|Truncating packet|^\s+Last message repeated', re.IGNORECASE)
# Decoders report these for good files too: a recording that begins between two key frames, odd clocks.
_HARMLESS = re.compile(
    r'mmco|co located|reference|\bPOC|unref|non-existing|no frame|deprecated|monoton|timestamp|\b[pd]ts\b|Last message',
    re.IGNORECASE,
)


def announced(path: Path) -> int:
    """How many frames the header of a video promises; 0 if it does not, or is none."""
    if why_not_a_file(path) is not None:
        return 0
    with _opened(path) as video:
        return max(int(video.get(cv2.CAP_PROP_FRAME_COUNT)), 0) if video.isOpened() else 0


def read_frames(path: Path, max_pixels: int) -> Iterator[tuple[int, np.ndarray | None, str | None, float]]:
    """Yields (number, frame, None, frames per second) of each frame; then (number, None, reason, 0), if there is one.

    One frame is held at a time. The rotation that a phone writes into the header is applied.

    Args:
        path: The file.
        max_pixels: Larger frames are refused before one is decoded.

    Yields:
        ``frame`` is (H, W, 3) uint8 BGR. The reason is that the file is no video, that a frame cannot be decoded or is
        damaged, or that there are clearly fewer frames than announced.
    """
    reason = why_not_a_file(path)
    if reason is not None:
        yield 0, None, reason, 0.0
        return
    with _opened(path) as video:
        fps = video.get(cv2.CAP_PROP_FPS)
        # Written so that NaN fails it.
        fps = fps if 0 < fps <= HIGHEST_FPS else USUAL_FPS
        promised, number, damage = int(video.get(cv2.CAP_PROP_FRAME_COUNT)), 0, None
        width, height = (int(video.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if width * height > max_pixels:
            yield 0, None, f'frames of {width} x {height} pixels, at most {max_pixels} pixels are taken', 0.0
            return
        while video.isOpened():
            with decoder_messages(_DECODERS) as messages:
                try:
                    there, frame = video.read()
                except cv2.error as error:
                    there, damage = False, f'frame {number} cannot be decoded: {error}'
            found = next((line.strip() for line in messages if not _HARMLESS.search(line)), None)
            if found is not None and damage is None:
                damage = f'the video is damaged near frame {number}: {found.partition("] ")[2] or found}'
            if not there:
                break
            yield number, frame, None, fps
            number += 1
    if number == 0:
        yield 0, None, 'cannot be read as a video', 0.0
    # Containers without an index only estimate the number.
    elif number < promised - max(1, promised // 100):
        yield number, None, f'the video ends after {number} of the {promised} frames that it announces', 0.0
    elif damage is not None:
        yield number, None, damage, 0.0


@contextmanager
def _opened(path: Path) -> Iterator[cv2.VideoCapture]:
    with ExitStack() as stack:
        name = str(path)
        try:
            name.encode()
        except UnicodeEncodeError:  # OpenCV takes names that are text only
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            name = os.path.join(folder, f'video{path.suffix}')
            os.symlink(path.absolute(), name)
        with decoder_messages(_DECODERS):
            # By name, since others take a percent sign for a series of pictures; one thread tells of damage in time.
            video = cv2.VideoCapture(name, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
            if not video.isOpened():
                video = cv2.VideoCapture(name)
            video.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
        stack.callback(video.release)
        yield video
