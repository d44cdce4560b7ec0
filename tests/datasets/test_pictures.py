"""Pictures that are turned, damaged, hostile or of unusual kinds, and all kinds of targets beside them."""

import io
import os
import runpy
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from mmrepmtl.datasets import MultiTaskCSVDataset, MultiTaskFolderDataset, pictures, readers
from mmrepmtl.datasets.cityscapes import read_disparity
from mmrepmtl.datasets.conversion import Sample
from mmrepmtl.datasets.pascal_context import read_coded_normals

KINDS = dict(
    rgb=(readers.read_picture_image, lambda a: a[..., ::1].astype(np.float32) / 255),
    label=(readers.read_picture_label, lambda a: a.astype(np.int64)),
    indices=(readers.read_picture_indices, lambda a: a),
    depth=(readers.read_picture_depth, lambda a: (a / 1000).astype(np.float32)),
    disparity=(read_disparity, lambda a: (a / 65535).astype(np.float32)),
)


def stored(kind: str) -> np.ndarray:
    """Pixels (4, 6) that no orientation leaves as they are."""
    if kind == 'rgb':
        return (np.arange(72, dtype=np.uint8) * 3).reshape(4, 6, 3)
    dtype = np.uint16 if kind in ('depth', 'disparity') else np.uint8
    return (np.arange(24) * (2000 if dtype == np.uint16 else 10)).astype(dtype).reshape(4, 6)


def encode(array: np.ndarray | Image.Image, format: str, orientation: int | None = None, **options) -> bytes:
    picture = Image.fromarray(array) if isinstance(array, np.ndarray) else array
    if orientation is not None:
        options['exif'] = Image.Exif()
        options['exif'][0x0112] = orientation
    file = io.BytesIO()
    picture.save(file, format=format, **options)
    return file.getvalue()


def write(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


# ---- EXIF orientation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('format', ['PNG', 'TIFF'])
@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_is_turned_as_pillow_turns_it(tmp_path, kind, format, orientation):
    content = encode(stored(kind), format, orientation)
    with Image.open(io.BytesIO(content)) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture))
    reader, convert = KINDS[kind]
    found = reader(write(tmp_path / 'a.png', content))
    assert found.shape == ((6, 4) if orientation > 4 else (4, 6)) + stored(kind).shape[2:]
    assert np.allclose(found, convert(expected), atol=1e-7)


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('format', ['JPEG', 'WEBP'])
def test_photos_are_turned(tmp_path, format, orientation):
    array = cv2.resize(stored('rgb'), (48, 32), interpolation=cv2.INTER_CUBIC)
    content = encode(array, format, orientation, quality=95)
    with Image.open(io.BytesIO(content)) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture))
    found = readers.read_picture_image(write(tmp_path / 'a.jpg', content))
    assert found.shape == expected.shape and np.abs(found - expected / 255).max() < 0.03


def test_a_palette_keeps_its_numbers_when_it_is_turned(tmp_path):
    picture = Image.fromarray(stored('label') % 7)
    picture.putpalette(list(range(255, -1, -1)) * 3)
    found = readers.read_picture_indices(write(tmp_path / 'a.png', encode(picture, 'PNG', 6)))
    assert np.array_equal(found, np.rot90(stored('label') % 7, -1))


def test_normals_are_turned_as_images_are(tmp_path):
    coded = stored('rgb')
    path = write(tmp_path / 'a.png', encode(coded, 'PNG', 6))
    plain = write(tmp_path / 'b.png', encode(coded, 'PNG'))
    assert np.array_equal(readers.read_picture_normal(path), np.rot90(readers.read_picture_normal(plain), -1))
    assert np.array_equal(read_coded_normals(path), np.rot90(read_coded_normals(plain), -1))


@pytest.mark.parametrize('orientation', [3, 5, 6, 8])
def test_image_and_targets_of_a_sample_stay_aligned(tmp_path, orientation):
    """All files say the same: each pixel of the sample has its own label and depth, cached or not, by folder or CSV."""
    plane = stored('label')
    content = dict(
        images=encode(np.repeat(plane[..., None], 3, 2), 'PNG', orientation),
        masks=encode(plane, 'PNG', orientation),
        depth=encode(plane.astype(np.uint16) * 100, 'PNG', orientation),
        normals=encode(np.stack([plane, plane, plane], -1), 'PNG', orientation),
    )
    for folder, data in content.items():
        write(tmp_path / folder / '1.png', data)
    write(tmp_path / 'all.csv', b'image,semseg,depth\nimages/1.png,masks/1.png,depth/1.png\n')
    classes = [str(number) for number in range(240)]
    labels = dict(
        semseg=dict(kind='segmentation', folder='masks', classes=classes),
        depth=dict(kind='depth', folder='depth', scale=1000),
    )
    arguments = dict(labels=labels, data_root=str(tmp_path), cache_dir=str(tmp_path / 'cache'))
    by_folder = [MultiTaskFolderDataset(**arguments) for _ in range(2)]
    for label in labels.values():
        del label['folder']
    by_csv = MultiTaskCSVDataset(labels=labels, data_root=str(tmp_path), ann_file='all.csv')
    for dataset in (*by_folder, by_csv):
        sample = dataset[0]
        grey = np.rint(255 * sample['img'][..., 0]).astype(int)
        assert grey.shape == ((6, 4) if orientation > 4 else (4, 6))
        assert np.array_equal(grey, sample['gt']['semseg'])
        assert np.allclose(grey / 10, sample['gt']['depth'])


def test_damaged_exif_turns_nothing(tmp_path):
    path = write(tmp_path / 'a.jpg', encode(stored('rgb'), 'JPEG', exif=b'Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01'))
    assert readers.read_picture_image(path).shape == (4, 6, 3)
    path = write(tmp_path / 'b.jpg', encode(stored('rgb'), 'JPEG', 77))
    assert readers.read_picture_image(path).shape == (4, 6, 3)


# ---- kinds of pixels -------------------------------------------------------------------------------------------------


def smooth(size=(40, 60), seed=0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize('mode', ['L', 'LA', 'RGBA', '1', 'P', 'CMYK'])
@pytest.mark.parametrize('format', ['PNG', 'TIFF', 'JPEG'])
def test_pictures_of_other_modes_are_what_pillow_shows(tmp_path, mode, format):
    if (format, mode) in [('PNG', 'CMYK'), ('JPEG', 'LA'), ('JPEG', 'RGBA'), ('JPEG', 'P'), ('JPEG', '1')]:
        pytest.skip('there is no such file')
    content = encode(Image.fromarray(smooth()).convert(mode), format)
    with Image.open(io.BytesIO(content)) as picture:
        expected = np.asarray(picture.convert('RGB')) / 255
    found, notes = readers.read_noted_image(write(tmp_path / 'a.png', content))
    assert found.dtype == np.float32 and np.abs(found - expected).max() < 0.03 and notes == []


@pytest.mark.parametrize(
    'high, scale, said',
    [(255, 255, '8-bit'), (256, 4095, '12-bit'), (4095, 4095, '12-bit'), (4096, 65535, None), (65535, 65535, None)],
)
@pytest.mark.parametrize('shape', [(20, 30), (20, 30, 3)])
def test_16_bits_are_scaled_by_their_range(tmp_path, high, scale, said, shape):
    array = np.linspace(0, high, int(np.prod(shape))).astype(np.uint16).reshape(shape)
    path = write(tmp_path / 'a.png', cv2.imencode('.png', array)[1].tobytes())
    found, notes = readers.read_noted_image(path)
    expected = array[..., ::-1] if array.ndim == 3 else np.repeat(array[..., None], 3, 2)
    assert np.allclose(found, expected / scale, atol=1e-6)
    assert ([said in note for note in notes] == [True]) if said else notes == []


def test_a_black_16_bit_picture_stays_black_without_a_note(tmp_path):
    path = write(tmp_path / 'a.png', cv2.imencode('.png', np.zeros((4, 4), np.uint16))[1].tobytes())
    found, notes = readers.read_noted_image(path)
    assert not found.any() and notes == []


@pytest.mark.parametrize('colours', [1, 3])
def test_floats_are_taken_in_0_to_1_only(tmp_path, colours):
    array = np.repeat(np.linspace(0, 1, 24, dtype=np.float32).reshape(4, 6)[..., None], 3, 2)
    encoded = encode(array[..., 0], 'TIFF') if colours == 1 else cv2.imencode('.tiff', array)[1].tobytes()
    assert np.allclose(readers.read_picture_image(write(tmp_path / 'a.tif', encoded)), array, atol=1e-7)
    encoded = encode(array[..., 0] * 9, 'TIFF') if colours == 1 else cv2.imencode('.tiff', array * 9)[1].tobytes()
    path = write(tmp_path / 'b.tif', encoded)
    with pytest.raises(ValueError, match=r'b.tif: found float values from 0 to 9, expected an RGB image in \[0, 1\]'):
        readers.read_picture_image(path)


@pytest.mark.parametrize('mode', ['LAB', 'I'])
def test_pixels_that_are_no_rgb_are_refused(tmp_path, mode):
    path = write(tmp_path / 'a.tif', encode(Image.fromarray(smooth()).convert(mode), 'TIFF'))
    with pytest.raises(ValueError, match=r'a.tif: found .*expected an RGB image'):
        readers.read_picture_image(path)


@pytest.mark.parametrize('format', ['GIF', 'PNG', 'TIFF', 'WEBP'])
def test_the_first_picture_of_several_is_taken_and_said(tmp_path, format):
    first, second = (Image.fromarray(smooth(seed=seed)) for seed in (0, 1))
    options = dict(lossless=True) if format == 'WEBP' else {}
    content = encode(first, format, save_all=True, append_images=[second], **options)
    found, notes = readers.read_noted_image(write(tmp_path / 'a.png', content))
    assert np.abs(found - smooth() / 255).mean() < (0.05 if format == 'GIF' else 1e-6)
    assert notes == ['the first of the 2 pictures in this file was taken']


def test_a_broken_colour_profile_does_no_harm(tmp_path):
    for format in ('PNG', 'JPEG'):
        path = write(tmp_path / 'a', encode(smooth(), format, icc_profile=b'no profile' * 30))
        assert np.abs(readers.read_picture_image(path) - smooth() / 255).max() < 0.1


# ---- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('place', [0.2, 0.4, 0.6, 0.8])
@pytest.mark.parametrize('progressive', [False, True])
def test_a_jpeg_that_is_damaged_inside_is_named(tmp_path, capfd, place, progressive):
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    content = bytearray(encode(noise, 'JPEG', progressive=progressive))
    start = int(len(content) * place)
    content[start : start + 40] = bytes(range(100, 140))
    path = write(tmp_path / 'a.jpg', bytes(content))
    with pytest.raises(ValueError, match='a.jpg: cannot be read as an image, expected an RGB image: '):
        readers.read_picture_image(path)
    # The reason is in the message, not loose on the terminal.
    assert capfd.readouterr().err == ''


def test_what_others_write_meanwhile_is_not_lost(capfd):
    with pictures.decoder_messages() as messages:
        os.write(2, b'Corrupt JPEG data: 50 extraneous bytes\nsomething else about a.jpeg\n')
    assert [line.split(':')[0] for line in messages] == ['Corrupt JPEG data']
    assert capfd.readouterr().err == 'something else about a.jpeg\n'


def test_bytes_behind_or_just_before_the_end_do_no_harm(tmp_path):
    content = encode(smooth(), 'JPEG')
    for data in (content + b'\0' * 100, content[:-2] + b'\0\0' + content[-2:]):
        assert np.abs(readers.read_picture_image(write(tmp_path / 'a.jpg', data)) - smooth() / 255).max() < 0.1


@pytest.mark.parametrize('share', [0.3, 0.6, 0.95])
@pytest.mark.parametrize('format', ['JPEG', 'PNG', 'TIFF', 'BMP', 'WEBP'])
def test_a_file_that_is_cut_off_is_named(tmp_path, capfd, format, share):
    content = encode(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8), format)
    path = write(tmp_path / 'a.jpg', content[: int(len(content) * share)])
    with pytest.raises(ValueError, match='a.jpg: cannot be read as an image, expected an RGB image'):
        readers.read_picture_image(path)
    assert capfd.readouterr().err == ''


def chunk(name: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, 'big') + name + data + zlib.crc32(name + data).to_bytes(4, 'big')


def bomb(side: int, kind: int = 2) -> bytes:
    """A small PNG of side x side pixels; only its first line has data."""
    header = side.to_bytes(4, 'big') * 2 + bytes([8, kind, 0, 0, 0])
    line = zlib.compress(b'\0' * (1 + side * (3 if kind == 2 else 1)))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', line) + chunk(b'IEND', b'')


@pytest.mark.parametrize('kind', ['rgb', 'label', 'indices', 'depth'])
def test_a_small_file_of_gigabytes_is_refused_before_it_is_decoded(tmp_path, monkeypatch, kind):
    path = write(tmp_path / 'bomb.png', bomb(60000, 2 if kind == 'rgb' else 0))
    monkeypatch.setattr(pictures.cv2, 'imdecode', lambda *_: pytest.fail('it was decoded'))
    with pytest.raises(ValueError, match='bomb.png: 60000 x 60000 pixels, at most 268435456 .*MMREPMTL_MAX_PIXELS'):
        KINDS[kind][0](path)


@pytest.mark.parametrize('length', [1 << 20, (1 << 31) - 1, (1 << 32) - 1])
def test_a_png_whose_chunk_announces_gigabytes_is_refused_before_it_is_decoded(tmp_path, monkeypatch, length):
    content = bytearray(encode(smooth(), 'PNG'))
    place = content.index(b'IDAT') - 4
    content[place : place + 4] = length.to_bytes(4, 'big')
    path = write(tmp_path / 'a.png', bytes(content))
    monkeypatch.setattr(pictures.cv2, 'imdecode', lambda *_: pytest.fail('it was decoded'))
    for reader in (readers.read_picture_image, readers.read_picture_indices):
        with pytest.raises(ValueError, match='a.png: cannot be read as an image, expected an'):
            reader(path)


def test_the_limit_is_a_setting(tmp_path, monkeypatch):
    path = write(tmp_path / 'a.png', encode(smooth(), 'PNG'))
    with pytest.raises(ValueError, match='60 x 40 pixels, at most 2399 pixels'):
        readers.read_noted_image(path, 2399)
    readers.read_noted_image(path, 2400)
    monkeypatch.setenv('MMREPMTL_MAX_PIXELS', '2399')
    with pytest.raises(ValueError, match='at most 2399 pixels are taken; MMREPMTL_MAX_PIXELS changes that'):
        readers.read_picture_image(path)
    monkeypatch.setenv('MMREPMTL_MAX_PIXELS', 'many')
    with pytest.raises(ValueError, match="MMREPMTL_MAX_PIXELS is 'many', expected a number of pixels"):
        readers.read_picture_image(path)


@pytest.mark.parametrize(
    'content',
    [b'', b'text\n', b'\x89PNG\r\n\x1a\n', b'\xff\xd8\xff\xd9', b'BM no bitmap', b'RIFF1234WEBP', b'RIFF1234WAVE']
    + [b'GIF89a', b'II*\0\x08\0\0\0', b'\0' * 2000],
)
@pytest.mark.parametrize('reader', [readers.read_picture_image, readers.read_picture_indices])
def test_what_is_no_picture_is_named(tmp_path, reader, content):
    with pytest.raises(ValueError, match='a.png: cannot be read as an image, expected an'):
        reader(write(tmp_path / 'a.png', content))


def test_what_is_no_file_is_named_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
    (tmp_path / 'dangling').symlink_to(tmp_path / 'nowhere')
    reasons = dict(
        pipe='is a named pipe, not a file',
        folder='is a folder, not a file',
        loop='is a link that leads back to itself',
        dangling='is a link to a file that is not there',
        missing='there is no such file',
        file=None,
    )
    (tmp_path / 'file').touch()
    assert {name: pictures.why_not_a_file(tmp_path / name) for name in reasons} == reasons
    assert 'a device' in pictures.why_not_a_file('/dev/null') and 'name of a file' in pictures.why_not_a_file('a\0b')
    assert 'File name too long' in pictures.why_not_a_file(tmp_path / ('x' * 300))
    with pytest.raises(ValueError, match='pipe: is a named pipe'):
        readers.read_picture_image(str(tmp_path / 'pipe'))
    with pytest.raises(FileNotFoundError):
        readers.read_picture_image(str(tmp_path / 'missing'))


def test_the_converter_of_office_copies_no_damaged_image(tmp_path):
    tool = runpy.run_path(str(Path(__file__).resolve().parents[2] / 'tools/dataset_converters/office.py'))
    content = encode(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8), 'JPEG')
    sample = Sample('x', 'amazon/x.jpg', dict(image=tmp_path / 'x.jpg'))
    for damaged in (content[:2000] + content[2500:], content[:900], b''):
        assert tool['copy_image'](sample, damaged).startswith('amazon/x.jpg: cannot be read as an image')
        assert not (tmp_path / 'x.jpg').exists()
    assert tool['copy_image'](sample, content) is None and (tmp_path / 'x.jpg').read_bytes() == content
