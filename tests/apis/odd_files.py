"""About a hundred files as people, cameras, systems and attackers leave them in folders of pictures."""

import io
import os
import socket
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from tests.apis.toy import picture


def encode(array: np.ndarray | Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(array) if isinstance(array, np.ndarray) else array
    image.save(file, format=format, **options)
    return file.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds a single line."""
    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    parts = [(b'IHDR', header), (b'IDAT', zlib.compress(bytes(1 + 3 * min(width, 100_000)))), (b'IEND', b'')]
    chunks = [struct.pack('>I', len(d)) + n + d + struct.pack('>I', zlib.crc32(n + d)) for n, d in parts]
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunks)


def good_files() -> dict[str | bytes, bytes]:
    """{name: content} of files that hold a picture."""
    array = picture((30, 40))
    image = Image.fromarray(array)
    grey = array[..., 0].astype(np.uint16)
    files: dict[str | bytes, bytes] = {
        'plain.png': encode(array, 'PNG'),
        'plain.jpg': encode(array, 'JPEG'),
        'PLAIN.JPG': encode(array, 'JPEG'),
        'plain.jpeg': encode(array, 'JPEG'),
        'plain.bmp': encode(array, 'BMP'),
        'plain.tif': encode(array, 'TIFF'),
        'plain.webp': encode(array, 'WEBP'),
        'really a jpeg.png': encode(array, 'JPEG'),
        'really a png.jpg': encode(array, 'PNG'),
        'really a gif.png': encode(image.convert('P'), 'GIF'),
        'progressive.jpg': encode(array, 'JPEG', progressive=True),
        'arithmetic subsampling.jpg': encode(array, 'JPEG', subsampling=2),
        'grey.jpg': encode(array[..., 0], 'JPEG'),
        'cmyk.jpg': encode(image.convert('CMYK'), 'JPEG'),
        'palette.png': encode(image.convert('P'), 'PNG'),
        'transparent palette.png': encode(image.convert('P'), 'PNG', transparency=0),
        'alpha.png': encode(image.convert('RGBA'), 'PNG'),
        'grey alpha.png': encode(image.convert('LA'), 'PNG'),
        'one bit.png': encode(image.convert('1'), 'PNG'),
        'one bit.tiff': encode(image.convert('1'), 'TIFF'),
        'cmyk.tiff': encode(image.convert('CMYK'), 'TIFF'),
        'lzw.tiff': encode(array, 'TIFF', compression='tiff_lzw'),
        'deflate.tiff': encode(array, 'TIFF', compression='tiff_adobe_deflate'),
        'float.tiff': encode(array[..., 0].astype(np.float32) / 255, 'TIFF'),
        'float colours.tiff': cv2.imencode('.tiff', array.astype(np.float32) / 255)[1].tobytes(),
        '16 bit.png': cv2.imencode('.png', array.astype(np.uint16) * 257)[1].tobytes(),
        '16 bit.tiff': cv2.imencode('.tiff', array.astype(np.uint16) * 257)[1].tobytes(),
        '16 bit small.png': cv2.imencode('.png', grey)[1].tobytes(),
        '16 bit of 12.png': cv2.imencode('.png', grey * 16)[1].tobytes(),
        '16 bit black.png': cv2.imencode('.png', grey * 0)[1].tobytes(),
        'animated.png': encode(image, 'PNG', save_all=True, append_images=[image.rotate(90)]),
        'animated.webp': encode(image, 'WEBP', save_all=True, append_images=[image.rotate(90)]),
        'pages.tiff': encode(image, 'TIFF', save_all=True, append_images=[image.resize((9, 9))]),
        'profile broken.jpg': encode(array, 'JPEG', icc_profile=b'none' * 40),
        'profile broken.png': encode(array, 'PNG', icc_profile=b'none' * 40),
        'exif broken.jpg': encode(array, 'JPEG', exif=b'Exif\0\0MM\0*\0\0\0\x08\xff\xff'),
        'comment long.jpg': encode(array, 'JPEG', comment=b'x' * 60000),
        'bytes behind.jpg': encode(array, 'JPEG') + b'\0' * 5000,
        'one pixel.png': encode(array[:1, :1], 'PNG'),
        'two pixels.jpg': encode(array[:1, :2], 'JPEG'),
        'column.png': encode(np.repeat(array[:1, :1], 3000, 0), 'PNG'),
        'row.png': encode(np.repeat(array[:1, :1], 3000, 1), 'PNG'),
        'thin.jpg': encode(picture((5, 2000)), 'JPEG'),
        'black.png': encode(array * 0, 'PNG'),
        'white.png': encode(array * 0 + 255, 'PNG'),
    }
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        files[f'turned {orientation}.jpg'] = encode(array, 'JPEG', exif=exif)
    return files | odd_names(encode(array, 'PNG'), encode(array, 'JPEG'))


def odd_names(png: bytes, jpeg: bytes) -> dict[str | bytes, bytes]:
    """The same picture under names that are hard to print, to write or to tell apart."""
    files: dict[str | bytes, bytes] = {
        'new\nline.png': png,
        'tab\tand\x1b[31mred.png': png,
        'carriage\rreturn.png': png,
        b'not \xff\xfe utf8.png': png,
        'ümläut 漢字 🙂.png': png,
        'left \u202e right.png': png,
        'quotes \'"`$(x) %s {0}.png': png,
        '-dash.png': png,
        '...png': png,
        '....png': png,
        ' space .png': png,
        'back\\slash.png': png,
        'dots.in.the.name.png': png,
        'name.png.jpg': jpeg,
        'depth.png': png,
        'visualization.png': png,
        '%03d.png': png,
        '漢' * 83 + '.png': png,
    }
    for length in (180, 181, 200, 212, 230, 240, 255):
        files[f'{length:03d}'.ljust(length - 4, 'n') + '.png'] = png
    return files


def bad_files() -> dict[str, tuple[bytes, str]]:
    """{name: (content, what the reason must hold)} of files that hold none, or a damaged one."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    jpeg, png = encode(noise, 'JPEG'), encode(noise, 'PNG')
    no_image = 'cannot be read as an image'
    files = {
        'empty.png': (b'', 'the file is empty'),
        'empty.jpg': (b'', 'the file is empty'),
        'text.png': (b'no picture\n', no_image),
        'page.jpg': (b'<!DOCTYPE html><html><body>404</body></html>', no_image),
        'vector.png': (b'<svg xmlns="http://www.w3.org/2000/svg"/>', no_image),
        'zeros.jpg': (bytes(5000), no_image),
        'archive.png': (b'PK\x03\x04' + bytes(100), no_image),
        'signature.png': (b'\x89PNG\r\n\x1a\n', no_image),
        'markers.jpg': (b'\xff\xd8\xff\xd9', no_image),
        'bitmap.bmp': (b'BM' + bytes(60), no_image),
        'directory.tiff': (b'II*\0\xff\xff\xff\xff', no_image),
        'riff.webp': (b'RIFF\x10\0\0\0WEBPVP8 ', no_image),
        'bomb.png': (png_of(60_000, 60_000), '60000 x 60000 pixels, at most 50000000'),
        'bomb wide.png': (png_of(2_000_000_000, 2), 'pixels'),
        'bomb.gif.png': (b'GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\x02L\x01\0;', '65535 x 65535'),
        'nothing wide.png': (png_of(0, 5), no_image),
        'float large.tiff': (encode(noise[..., 0].astype(np.float32) * 9, 'TIFF'), 'found float values from'),
        'float nan.tiff': (encode(noise[..., 0] * np.float32('nan'), 'TIFF'), 'found float values from nan'),
        '32 bit.tiff': (encode(noise[..., 0].astype(np.int32) * 99999, 'TIFF'), 'int32'),
        'cielab.tiff': (encode(image.convert('LAB'), 'TIFF'), 'CIELAB'),
    }
    for format, content in dict(jpg=jpeg, png=png, bmp=encode(noise, 'BMP'), webp=encode(noise, 'WEBP')).items():
        for share in (0.01, 0.3, 0.6, 0.99):
            files[f'cut {share}.{format}'] = (content[: int(len(content) * share)], no_image)
    files['cut.tiff'] = (encode(noise, 'TIFF')[:5000], no_image)
    for start in (0.3, 0.5, 0.7, 0.9):
        place = int(len(jpeg) * start)
        files[f'damaged {start}.jpg'] = (
            jpeg[:place] + bytes(range(100, 140)) + jpeg[place + 40 :],
            'Corrupt JPEG data',
        )
    files['damaged.png'] = (png[:3000] + b'\0' * 9 + png[3009:], no_image)
    files['hole.jpg'] = (jpeg[:2000] + jpeg[3000:], 'Corrupt JPEG data')
    return files


def make_odd_files(folder: Path) -> tuple[set[bytes], dict[str, str]]:
    """Writes all of them, and what has the name of a picture but is no file.

    Returns:
        The names of those that hold a picture, and {name: what the reason must hold} of the others.
    """
    folder.mkdir()
    good, bad = good_files(), bad_files()
    for name, content in (*good.items(), *((name, content) for name, (content, _) in bad.items())):
        with open(os.path.join(os.fsencode(folder), os.fsencode(name)), 'wb') as file:
            file.write(content)
    reasons = {name: reason for name, (_, reason) in bad.items()}
    (folder / 'loop.png').symlink_to(folder / 'loop.png')
    (folder / 'ping.png').symlink_to(folder / 'pong.png')
    (folder / 'pong.png').symlink_to(folder / 'ping.png')
    (folder / 'dangling.png').symlink_to(folder / 'nowhere.png')
    (folder / 'folder.jpg').mkdir()
    (folder / 'device.png').symlink_to('/dev/zero')
    os.mkfifo(folder / 'pipe.png')
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(folder)  # names of sockets are short
        listener.bind('socket.png')
        os.chdir(here)
    (folder / 'link.png').symlink_to(folder / 'plain.png')
    os.link(folder / 'plain.png', folder / 'hard link.png')
    reasons |= {
        'loop.png': 'link that leads back to itself',
        'ping.png': 'link that leads back to itself',
        'pong.png': 'link that leads back to itself',
        'dangling.png': 'link to a file that is not there',
        'folder.jpg': 'is a folder',
        'device.png': 'is a device',
        'pipe.png': 'is a named pipe',
        'socket.png': 'is a socket',
    }
    return {os.fsencode(name) for name in (*good, 'link.png', 'hard link.png')}, reasons


def save(path: Path, array: np.ndarray | None = None) -> Path:
    """Writes a picture, by default one of 60 x 90 pixels; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(picture() if array is None else array, {'.jpg': 'JPEG'}.get(path.suffix.lower(), 'PNG')))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """{path: bytes} of all files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}
