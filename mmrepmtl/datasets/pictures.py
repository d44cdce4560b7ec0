"""Picture files that may be damaged, hostile or turned: what is in the header, and pixels only if all of them are good.

OpenCV decodes, since it is fast and knows 16 bits. Pillow reads the header first, so that a small file that unfolds to
gigabytes is refused before it is decoded. A file of another kind, one that is cut off and one that the decoder merely
complains about are errors, never a grey rest of a picture.
"""

import os
import re
import stat
import struct
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

#: Environment variable with the most pixels that a picture of a data set may have.
MAX_PIXELS_ENV = 'MMREPMTL_MAX_PIXELS'
MAX_PIXELS = 2**28

# By the first bytes of a file: its name means nothing. Called directly, since Image.open has a limit of its own.
_FORMATS: tuple[tuple[bytes, str, Callable[..., Image.Image]], ...] = (
    (b'\xff\xd8', 'JPEG', JpegImagePlugin.jpeg_factory),
    (b'\x89PNG\r\n\x1a\n', 'PNG', PngImagePlugin.PngImageFile),
    (b'II*\0', 'TIFF', TiffImagePlugin.TiffImageFile),
    (b'MM\0*', 'TIFF', TiffImagePlugin.TiffImageFile),
    (b'II+\0', 'TIFF', TiffImagePlugin.TiffImageFile),
    (b'MM\0+', 'TIFF', TiffImagePlugin.TiffImageFile),
    (b'RIFF', 'WebP', WebPImagePlugin.WebPImageFile),
    (b'BM', 'BMP', BmpImagePlugin.BmpImageFile),
    (b'GIF8', 'GIF', GifImagePlugin.GifImageFile),
)
_ORIENTATION, _WIDTH, _HEIGHT = 0x0112, 0x0100, 0x0101
# Pillow's parsers raise these for a file that is no picture.
_HEADER_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError),
    *(struct.error, AttributeError, RuntimeError, MemoryError),
)
# Libjpeg goes on after these with grey or wrong pixels; a few bytes too many before the end do no harm.
_DAMAGE = re.compile(r'Corrupt JPEG data|Premature end of JPEG|Not enough data at|TIFFFill\w+: Read error')
_HARMLESS = re.compile(r'Corrupt JPEG data: [1-4] extraneous bytes before marker 0xd9')
_DECODERS = re.compile(
    r'^(libpng (error|warning): |\[ *(ERROR|WARN|INFO|DEBUG):\d+@|OpenCV|> |tempfile\.tif: |'
    r'(Corrupt|Premature end of|Unsupported) (JPEG|data)|'
    r'Unsupported marker|Invalid |Inconsistent |Bogus |Warning: unknown JFIF|Unknown Adobe|'
    r'((TIFF|LZW|Zip|Fax|PackBits|JPEG|Deflate|LERC|WebP)\w*: )|\s*$)'
)


class Header(NamedTuple):
    """The header of a picture file.

    Attributes:
        format: 'JPEG', 'PNG', 'TIFF', 'WebP', 'BMP' or 'GIF'.
        size: (height, width) in pixels, as stored.
        mode: Pillow's name of the kind of pixels, '' if it has none.
        frames: Number of frames of an animation, or of pages of a document.
        orientation: EXIF's number, 1 to 8.
    """

    format: str
    size: tuple[int, int]
    mode: str
    frames: int
    orientation: int


def max_pixels() -> int:
    """The most pixels that a picture of a data set may have.

    Raises:
        ValueError: If the environment variable ``MMREPMTL_MAX_PIXELS`` is no positive whole number.
    """
    text = os.environ.get(MAX_PIXELS_ENV)
    if text is None:
        return MAX_PIXELS
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f'{MAX_PIXELS_ENV} is {text!r}, expected a number of pixels, 1 or more')
    return int(text)


def why_not_a_file(path: str | os.PathLike) -> str | None:
    """Why there are no bytes to read at ``path``, in words, or None: it is a file that may be read."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return 'is a link to a file that is not there' if os.path.islink(path) else 'there is no such file'
    except OSError as error:
        loop = os.path.islink(path) and error.errno not in (None, 13)
        return 'is a link that leads back to itself' if loop else f'cannot be read: {error.strerror}'
    except ValueError as error:  # a null byte
        return f'is no name of a file: {error}'
    if stat.S_ISREG(mode):
        return None if os.access(path, os.R_OK) else 'cannot be read: Permission denied'
    kinds = ((stat.S_ISDIR, 'a folder'), (stat.S_ISFIFO, 'a named pipe'), (stat.S_ISSOCK, 'a socket'))
    return f'is {next((name for test, name in kinds if test(mode)), "a device")}, not a file'


def read_bytes(path: str, expected: str, limit: int | None = None) -> np.ndarray:
    """All bytes of a file.

    Args:
        path: The file.
        expected: For the error.
        limit: The most pixels of a picture; a file with more bytes than so many pixels can have is refused.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no file that can be read, it is empty, or far too long.
    """
    reason = why_not_a_file(path)
    if reason == 'there is no such file':
        raise FileNotFoundError(2, 'there is no such file', path)
    if reason is not None:
        raise ValueError(f'{path}: {reason}')
    size, most = os.path.getsize(path), 16 * (limit or max_pixels()) + 2**26
    if size == 0:
        raise ValueError(f'{path}: cannot be read as an image, expected {expected}: the file is empty')
    if size > most:
        raise ValueError(f'{path}: cannot be read as an image: {size} bytes, at most {most} are taken')
    try:
        return np.fromfile(path, np.uint8)
    except OSError as error:
        raise ValueError(f'{path}: cannot be read: {error.strerror or error}') from error


def read_header(data: bytes | memoryview, path: str, expected: str, limit: int | None = None) -> Header:
    """The header of a picture; no pixel is decoded.

    Args:
        data: The bytes of the file.
        path: The file, for errors.
        expected: For errors.
        limit: The most pixels; None takes :func:`max_pixels`.

    Raises:
        ValueError: It is no picture, or has too many pixels.
    """
    opened, kind = _open(data, path, expected)
    if opened is None:
        height, width, orientation = _tiff_tags(data, path, expected)
        header = Header(kind, (height, width), '', 1, orientation)
    else:
        try:
            orientation = 1 if kind == 'TIFF' else _exif_orientation(opened, data, kind)
        except ValueError as error:
            raise ValueError(f'{path}: cannot be read as an image, expected {expected}: {error}') from error
        header = Header(kind, (opened.height, opened.width), opened.mode, _frames(opened), orientation)
    height, width = header.size
    most = limit or max_pixels()
    if height * width > most:
        setting = f'; {MAX_PIXELS_ENV} changes that' if limit is None else ''
        raise ValueError(
            f'{path}: {width} x {height} pixels, at most {most} pixels are taken{setting} (the file has '
            f'{len(data)} bytes)'
        )
    if height < 1 or width < 1:
        raise ValueError(f'{path}: cannot be read as an image, expected {expected}: {width} x {height} pixels')
    return header


def decode(path: str, flags: int, expected: str, limit: int | None = None) -> tuple[np.ndarray, Header]:
    """The pixels of a picture with its EXIF orientation applied, whatever the flags.

    Args:
        path: The file.
        flags: OpenCV's ``IMREAD_...``.
        expected: For errors.
        limit: The most pixels; None takes :func:`max_pixels`.

    Returns:
        As OpenCV gives them, (H, W, 3) BGR or (H, W), and the header.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be decoded, is damaged or cut off, or has too many pixels; names the file.
    """
    return decode_bytes(read_bytes(path, expected, limit), path, flags, expected, limit)


def decode_bytes(
    data: np.ndarray, path: str, flags: int, expected: str, limit: int | None = None
) -> tuple[np.ndarray, Header]:
    """As :func:`decode`, from the bytes (N,) uint8 of the file, which ``path`` names in errors."""
    header = read_header(data.data, path, expected, limit)
    # OpenCV turns a TIFF always, other files only with some flags.
    if flags != cv2.IMREAD_UNCHANGED:
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    with decoder_messages() as messages:
        try:
            array = cv2.imdecode(data, flags)
        except (cv2.error, MemoryError) as error:
            messages.append(f'{type(error).__name__}: {error}')
            array = None
    damage = next((line for line in messages if _DAMAGE.search(line) and not _HARMLESS.search(line)), None)
    if array is None and header.format == 'TIFF' and header.mode in ('F', 'I'):
        # Pillow has turned it, too.
        array, damage = np.asarray(_load(data.data, path, expected)), None
    if array is None or damage is not None:
        # Without the clock and the source line of OpenCV's log.
        why = damage.strip().rpartition('TIFF_Error ')[2] if damage else 'it is damaged or cut off'
        raise ValueError(f'{path}: cannot be read as an image, expected {expected}: {why}')
    return upright(array, header.orientation), header


def open_pixels(path: str, expected: str, limit: int | None = None) -> Image.Image:
    """A picture with Pillow, which keeps the numbers of a palette; EXIF orientation is applied.

    Raises:
        FileNotFoundError, ValueError: As :func:`decode`.
    """
    data = read_bytes(path, expected, limit).data
    header = read_header(data, path, expected, limit)
    opened = _load(data, path, expected)
    method = _TRANSPOSES.get(header.orientation)
    return opened if method is None else opened.transpose(method)


_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Rotates and mirrors an array (H, W, ...) as its EXIF orientation says; 5 to 8 exchange height and width."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    # Rows first: after the exchange the axes are those of the picture that is seen.
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


def _load(data: memoryview, path: str, expected: str) -> Image.Image:
    """All pixels with Pillow, which turns a TIFF."""
    opened, _ = _open(data, path, expected)
    if opened is None:
        raise ValueError(f'{path}: cannot be read as an image, expected {expected}')
    try:
        with warnings.catch_warnings(), decoder_messages():
            warnings.simplefilter('ignore')
            opened.load()
    except _HEADER_ERRORS as error:
        raise ValueError(f'{path}: cannot be read as an image, expected {expected}: {error}') from error
    return opened


def _open(data: bytes | memoryview, path: str, expected: str) -> tuple[Image.Image | None, str]:
    """Pillow's view of the file, None for a TIFF of pixels that it does not know, and the format."""
    start = bytes(data[:12])
    kind, factory = next(((name, make) for magic, name, make in _FORMATS if start.startswith(magic)), ('', None))
    if factory is None or (kind == 'WebP' and start[8:12] != b'WEBP'):
        raise ValueError(f'{path}: cannot be read as an image, expected {expected}')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return factory(BytesIO(data), ''), kind
    except _HEADER_ERRORS as error:
        if kind == 'TIFF':
            return None, kind
        raise ValueError(f'{path}: cannot be read as an image, expected {expected}: {error}') from error


def _tiff_tags(data: bytes | memoryview, path: str, expected: str) -> tuple[int, int, int]:
    """Height, width and 1 (OpenCV turns it) of a TIFF whose pixels Pillow does not know, such as three floats."""
    try:
        file = BytesIO(data)
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            tags.load(file)
        return int(tags[_HEIGHT]), int(tags[_WIDTH]), 1
    except _HEADER_ERRORS as error:
        raise ValueError(f'{path}: cannot be read as an image, expected {expected}: {error}') from error


def _frames(opened: Image.Image) -> int:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return int(getattr(opened, 'n_frames', 1))
    except _HEADER_ERRORS:
        return 1


def _exif_orientation(opened: Image.Image, data: bytes | memoryview, kind: str) -> int:
    # Pillow would decode all pixels of a PNG to look for EXIF behind them.
    raw = _png_exif(data) if kind == 'PNG' else opened.info.get('exif')
    if not raw:
        return 1
    exif = Image.Exif()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            exif.load(bytes(raw))
            value = exif.get(_ORIENTATION, 1)
    except _HEADER_ERRORS:
        # Damaged EXIF says nothing; the pixels are good all the same.
        return 1
    return int(value) if value in range(1, 9) else 1


def _png_exif(data: bytes | memoryview) -> bytes | None:
    """The chunk ``eXIf`` of a PNG.

    Raises:
        ValueError: The file ends within a chunk or before the last one. OpenCV would make room for what a chunk
            announces, which may be gigabytes.
    """
    place, found = 8, None
    while place + 12 <= len(data):
        (length,), name = struct.unpack('>I', data[place : place + 4]), bytes(data[place + 4 : place + 8])
        if name == b'IEND':
            return found
        if name == b'eXIf':
            found = bytes(data[place + 8 : place + 8 + length])
        place += 12 + length
    raise ValueError('it is cut off, or a part of it announces more bytes than there are')


_lock = threading.Lock()


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, 'register_at_fork'):
    # A thread that held it does not exist in a child.
    os.register_at_fork(after_in_child=_renew_lock)


@contextmanager
def decoder_messages(mine: re.Pattern = _DECODERS) -> Iterator[list[str]]:
    """Collects what C libraries write to the process's standard error: libjpeg reports damage in no other way.

    Args:
        mine: Lines that a decoder writes; all others are passed on.
    """
    lines: list[str] = []
    with _lock:
        try:
            usual = os.dup(2)
        except OSError:  # there is no standard error
            yield lines
            return
        try:
            with tempfile.TemporaryFile() if not hasattr(os, 'memfd_create') else _memory_file() as file:
                os.dup2(file.fileno(), 2)
                try:
                    yield lines
                finally:
                    os.dup2(usual, 2)
                file.seek(0)
                for line in file.read().splitlines(keepends=True):
                    text = line.decode(errors='replace')
                    if mine.search(text):
                        lines.append(text)
                    else:
                        os.write(2, line)
        finally:
            os.close(usual)


def _memory_file() -> Any:
    return os.fdopen(os.memfd_create('decoder'), 'w+b')
