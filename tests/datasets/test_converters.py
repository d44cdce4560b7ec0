import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from scipy.io import savemat

from mmrepmtl.datasets import CityscapesDataset, GTA5Dataset, NYUv2Dataset
from mmrepmtl.datasets.conversion import running as converting
from mmrepmtl.datasets.nyuv2_mat import NYUv2Mat
from mmrepmtl.utils.files import whole_file
from tests.datasets.harness import TOOLS, convert, tool
from tests.datasets.nyuv2_files import (
    COUNT,
    SPLITS,
    expected_label,
    make_image,
    write_labelled_mat,
    write_official,
)
from tests.datasets.street_files import (
    FRAMES,
    make_frame,
    raw_paths,
    write_gta5,
    write_png,
    write_raw_cityscapes,
)

ROOT = Path(__file__).resolve().parents[2]

needs_data = pytest.mark.skipif(
    'MMREPMTL_DATA' not in os.environ, reason='needs raw Cityscapes frames: set MMREPMTL_DATA to the folder above'
)


def contents(folder):
    """{file below a folder: (bytes, time of its last change)}."""
    files = sorted(path for path in Path(folder).rglob('*') if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.fixture(scope='module')
def official(tmp_path_factory):
    folder = tmp_path_factory.mktemp('official')
    write_official(folder)
    return folder


@pytest.fixture
def raw(tmp_path):
    write_raw_cityscapes(tmp_path / 'raw')
    return tmp_path / 'raw'


def test_nyuv2_is_what_the_file_holds(official, tmp_path):
    assert convert('nyuv2', official, tmp_path / 'out', size='30x40') == 0
    for split, numbers in SPLITS.items():
        dataset = NYUv2Dataset(tmp_path / 'out', split=split)
        assert len(dataset) == len(numbers) and dataset.layout == 'auto'
        errors = []
        for results, number in zip(dataset, sorted(numbers), strict=True):
            gt, image = results['gt'], make_image(number)
            # At half the size: means of 2 x 2 pixels; the pixel that holds the centre of the new one.
            means = image['image'].reshape(30, 2, 40, 2, 3).mean((1, 3)) / 255
            np.testing.assert_allclose(results['img'], means, atol=1e-5)
            np.testing.assert_array_equal(gt['semseg'], expected_label(image['labels'])[1::2, 1::2])
            np.testing.assert_array_equal(gt['depth'], image['depth'][1::2, 1::2])
            known = np.abs(gt['normal']).sum(-1) > 0
            assert known.mean() > 0.95
            cosine = (gt['normal'] * image['normal'][1::2, 1::2]).sum(-1)[known]
            errors.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
        # The rendered camera looks through the middle of the image, the Kinect 13 of 480 rows below: 1.5 degrees.
        assert np.median(np.concatenate(errors)) < 2
    settings = json.loads((tmp_path / 'out' / 'conversion.json').read_text())
    assert settings['samples'] == dict(train=['0001', '0005'], val=['0002', '0003', '0004'])


def test_nyuv2_files_have_the_formats_of_the_archive(official, tmp_path):
    convert('nyuv2', official, tmp_path, size='30x40')
    arrays = {name: np.load(tmp_path / 'train' / name / '0.npy') for name in ('image', 'label', 'depth', 'normal')}
    assert {name: (array.shape, str(array.dtype)) for name, array in arrays.items()} == dict(
        image=((30, 40, 3), 'float32'), label=((30, 40), 'float32'), depth=((30, 40, 1), 'float32'),
        normal=((30, 40, 3), 'float32'))  # fmt: skip
    assert arrays['label'].min() == -1 and arrays['label'].max() <= 12


def test_default_size_is_that_of_the_archive():
    sizes = {name: tool(name).SIZE for name in ('nyuv2', 'cityscapes', 'gta5')}
    assert sizes == dict(nyuv2=(288, 384), cityscapes=(128, 256), gta5=(128, 256))
    counts = [tool(name).COUNTS for name in ('nyuv2', 'cityscapes', 'gta5')]
    assert counts == [dict(train=795, val=654), dict(train=2975, val=500), dict(all=24966)]


def test_a_second_run_does_only_what_is_missing(official, tmp_path):
    convert('nyuv2', official, tmp_path)
    before = contents(tmp_path)
    (tmp_path / 'train' / 'normal' / '1.npy').unlink()
    # The cut-off rest of a killed run; it is neither read as data nor kept.
    (tmp_path / 'val' / 'depth' / '.2.npy.0123.tmp').write_bytes(b'\x93NUMPY')
    assert len(NYUv2Dataset(tmp_path, split='val')) == 3
    assert convert('nyuv2', official, tmp_path) == 0
    after = contents(tmp_path)
    assert {name for name in before if after[name] != before[name]} == {'train/normal/1.npy'}
    assert after.keys() == before.keys()
    assert after['train/normal/1.npy'][0] == before['train/normal/1.npy'][0]


def test_no_half_written_file_gets_a_name(tmp_path):
    path = tmp_path / 'depth' / '0.npy'
    with pytest.raises(KeyboardInterrupt), whole_file(path) as file:
        file.write(b'half')
        file.flush()
        assert not path.exists()
        assert [child.suffix for child in path.parent.iterdir()] == ['.tmp']
        raise KeyboardInterrupt
    assert list(path.parent.iterdir()) == []
    with whole_file(path) as file:
        file.write(b'whole')
        written = os.fstat(file.fileno()).st_ino
    # Renamed, not copied.
    assert path.read_bytes() == b'whole' and path.stat().st_ino == written


def test_a_stopped_run_goes_on(raw, tmp_path, monkeypatch):
    save, saved = converting.save_array, []

    def save_until_stopped(path, array):
        if len(saved) == 5:
            raise KeyboardInterrupt
        saved.append(path)
        save(path, array)

    monkeypatch.setattr(converting, 'save_array', save_until_stopped)
    with pytest.raises(KeyboardInterrupt):
        convert('cityscapes', raw, tmp_path / 'out')
    before = contents(tmp_path / 'out')
    assert len(before) == 6  # with conversion.json
    monkeypatch.setattr(converting, 'save_array', save)
    assert convert('cityscapes', raw, tmp_path / 'out') == 0
    after = contents(tmp_path / 'out')
    assert all(after[name] == before[name] for name in before) and len(after) == 4 * 4 + 1


@pytest.mark.parametrize('num_classes', [7, 19])
def test_cityscapes_is_the_raw_data_set_resized(raw, tmp_path, num_classes):
    """At the unit of inverse depth, and with the pipeline's resizing, to the last bit."""
    assert convert('cityscapes', raw, tmp_path / 'out', size='12x20') == 0
    pipeline = [dict(type='ResizeMultiTask', size=(12, 20), interpolation='area')]
    for split in FRAMES:
        arguments = dict(split=split, num_classes=num_classes)
        converted = CityscapesDataset(tmp_path / 'out', layout='npy', **arguments)
        expected = CityscapesDataset(raw, layout='raw', pipeline=pipeline, **arguments)
        assert len(converted) == len(expected) == len(FRAMES[split])
        for one, other in zip(converted, expected, strict=True):
            np.testing.assert_allclose(one['img'], other['img'], atol=1e-6)
            for target in ('semseg', 'depth'):
                np.testing.assert_array_equal(one['gt'][target], other['gt'][target])
    assert np.load(tmp_path / 'out' / 'train' / 'depth' / '0.npy').shape == (12, 20, 1)
    assert np.load(tmp_path / 'out' / 'train' / 'label_7' / '0.npy').min() == -1


def test_gta5_is_the_raw_data_set_resized(tmp_path):
    write_gta5(tmp_path / 'raw')
    assert convert('gta5', tmp_path / 'raw', tmp_path / 'out', size='12x20') == 0
    converted = GTA5Dataset(tmp_path / 'out')
    pipeline = [dict(type='ResizeMultiTask', size=(12, 20), interpolation='area')]
    for one, other in zip(converted, GTA5Dataset(tmp_path / 'raw', pipeline=pipeline), strict=True):
        np.testing.assert_allclose(one['img'], other['img'], atol=0.5 / 255 + 1e-6)
        np.testing.assert_array_equal(one['gt']['semseg'], other['gt']['semseg'])


def test_gta5_pictures_may_differ_from_labels_by_few_pixels(tmp_path, capsys):
    write_gta5(tmp_path / 'raw', ['00001', '00002'], size=(52, 104))
    write_png(tmp_path / 'raw' / 'images' / '00001.png', make_frame('00001', size=(53, 105))['image'])
    write_png(tmp_path / 'raw' / 'images' / '00002.png', make_frame('00001', size=(60, 104))['image'])
    assert convert('gta5', tmp_path / 'raw', tmp_path / 'out') == 1
    error = capsys.readouterr().err
    assert 'labels/00002.png: found (52, 104), expected about (60, 104), the size of' in error
    assert 'error: 1 of 2 samples failed' in error and len(GTA5Dataset(tmp_path / 'out')) == 1


def test_counts_are_compared_with_the_official_ones(official, tmp_path, capsys):
    assert convert('nyuv2', official, tmp_path / 'out', partial=False) == 1
    error = capsys.readouterr().err
    assert 'error: the source is not complete: train: 2 of 795 samples; val: 3 of 654 samples. Pass --allow' in error
    assert not (tmp_path / 'out').exists()
    complete = tool('nyuv2')
    complete.COUNTS = dict(train=2, val=3)
    assert complete.main([str(official), str(tmp_path / 'out'), '--workers', '0', '--size', '12x16']) == 0
    output = capsys.readouterr().out
    assert 'train: image 2, semseg 2, depth 2, normal 2 (official count: 2)' in output


def test_missing_files_of_the_source_are_named(raw, tmp_path, capsys):
    raw_paths(raw, 'train', FRAMES['train'][1])['disparity'].unlink()
    assert convert('cityscapes', raw, tmp_path / 'out', partial=False) == 1
    error = capsys.readouterr().err
    assert 'train: 3 of 2975 samples; val: 1 of 500 samples; 1 of 3 files are missing in' in error
    assert f'disparity/train, the first is {FRAMES["train"][1]}_disparity.png' in error
    assert convert('cityscapes', tmp_path / 'nowhere', tmp_path / 'out') == 1
    assert 'no images in' in capsys.readouterr().err and not (tmp_path / 'out').exists()


def test_a_part_that_comes_later_is_added(raw, tmp_path):
    path = raw_paths(raw, 'train', FRAMES['train'][1])['disparity']
    disparity = path.read_bytes()
    path.unlink()
    convert('cityscapes', raw, tmp_path / 'out')
    before = contents(tmp_path / 'out')
    dataset = CityscapesDataset(tmp_path / 'out', allow_unlabelled=True)
    assert [sorted(results['gt']) for results in dataset] == [['depth', 'semseg'], ['semseg'], ['depth', 'semseg']]
    path.write_bytes(disparity)
    assert convert('cityscapes', raw, tmp_path / 'out') == 0
    after = contents(tmp_path / 'out')
    assert set(after) - set(before) == {'train/depth/1.npy'}
    assert all(after[name] == before[name] for name in before)


def test_files_of_two_conversions_are_not_mixed(raw, tmp_path, capsys):
    assert convert('cityscapes', raw, tmp_path / 'out') == 0
    assert convert('cityscapes', raw, tmp_path / 'out', size='8x16') == 1
    assert 'begun with other settings (size: [16, 32] there, [8, 16] now)' in capsys.readouterr().err
    # Numbers are positions: one frame less, and all later ones would move.
    raw_paths(raw, 'train', FRAMES['train'][0])['image'].unlink()
    assert convert('cityscapes', raw, tmp_path / 'out') == 1
    assert 'begun with other settings (other samples)' in capsys.readouterr().err
    (tmp_path / 'archive' / 'train').mkdir(parents=True)
    assert convert('cityscapes', raw, tmp_path / 'archive') == 1
    assert 'archive is not empty and was not made by this converter' in capsys.readouterr().err


@pytest.mark.parametrize('key, change, message', [
    ('image', None, 'leftImg8bit.png: cannot be read as an image, expected an RGB image'),
    ('ids', lambda a: a + 1, 'labelIds.png: found label ids [34], expected labelIds from 0 to 33'),
    ('ids', lambda a: a[1:], 'labelIds.png: found (31, 64), expected (32, 64), the size of'),
    ('disparity', lambda a: (a // 256).astype(np.uint8), 'disparity.png: found (32, 64) uint8, expected a 16-bit'),
])  # fmt: skip
def test_a_damaged_file_is_named_and_the_others_are_converted(raw, tmp_path, capsys, key, change, message):
    name = FRAMES['train'][1]
    path = raw_paths(raw, 'train', name)[key]
    if change is None:
        path.write_bytes(path.read_bytes()[:-50])
    else:
        write_png(path, change(make_frame(name)[key]))
    assert convert('cityscapes', raw, tmp_path / 'out') == 1
    error = capsys.readouterr().err
    assert message in error and 'error: 1 of 4 samples failed' in error
    assert {path.name for path in (tmp_path / 'out').rglob('*.npy')} == {'0.npy', '2.npy'}
    write_png(path, make_frame(name)[key])
    assert convert('cityscapes', raw, tmp_path / 'out') == 0
    assert len(CityscapesDataset(tmp_path / 'out')) == 3


def replace_dataset(path, name, change):
    with h5py.File(path, 'r+') as file:
        array = change(file[name][...])
        del file[name]
        file[name] = array


@pytest.mark.parametrize('name, change, message', [
    ('labels', lambda a: np.where(a == a.max(), 895, a).astype(np.uint16), 'found label 895, expected 0 (unlabelled)'),
    ('depths', lambda a: -a, "image 1: target 'depth': found values from -"),
    ('depths', lambda a: a[:, 1:], 'expected images (1449, 3, 640, 480), depths and labels (1449, 640, 480)'),
    ('images', lambda a: a / 255, 'images and labels unsigned'),
])  # fmt: skip
def test_wrong_values_of_the_mat_file_are_named(official, tmp_path, capsys, name, change, message):
    write_official(tmp_path, [make_image(1)] * COUNT)
    replace_dataset(tmp_path / 'nyu_depth_v2_labeled.mat', name, change)
    assert convert('nyuv2', tmp_path, tmp_path / 'out') == 1
    error = capsys.readouterr().err
    assert message in error and 'nyu_depth_v2_labeled.mat' in error


def test_a_damaged_mat_file_is_named(tmp_path, capsys):
    write_official(tmp_path)
    path = tmp_path / 'nyu_depth_v2_labeled.mat'
    whole = path.read_bytes()
    write_labelled_mat(path, [make_image(1)] * COUNT, transposed=True)
    path.write_bytes(whole[: len(whole) // 2])
    assert convert('nyuv2', tmp_path, tmp_path / 'out') == 1
    assert f'error: {path}: cannot be read' in capsys.readouterr().err
    path.unlink()
    assert convert('nyuv2', tmp_path, tmp_path / 'out') == 1
    assert f'error: there is no file {path}' in capsys.readouterr().err


def test_axes_that_were_not_reversed_are_refused(tmp_path):
    write_official(tmp_path)
    write_labelled_mat(tmp_path / 'nyu_depth_v2_labeled.mat', [make_image(1)] * COUNT, transposed=True)
    with pytest.raises(ValueError, match=r'found .*, expected images \(1449, 3, 640, 480\)'):
        NYUv2Mat(tmp_path)


@pytest.mark.parametrize('name, variables, message', [
    ('classMapping40.mat', dict(mapClass=np.ones((1, 893))), 'found 0 arrays of 894 numbers, expected one'),
    ('classMapping40.mat', dict(mapClass=np.full((1, 894), 41)), 'expected one, 894 class numbers from 0 to 40'),
    ('class13Mapping.mat', dict(a=np.ones(40), b=np.ones(40)), 'found 2 arrays of 40 numbers, expected one'),
    ('splits.mat', dict(trainNdxs=[[1]]), 'found no usable testNdxs, expected trainNdxs and testNdxs'),
    ('splits.mat', dict(trainNdxs=[[0, 1]], testNdxs=[[2]]), 'found no usable trainNdxs'),
    ('splits.mat', dict(trainNdxs=[[1, 2]], testNdxs=[[2]]), 'an image is named twice'),
    ('splits.mat', None, 'there is no file .*splits.mat, expected trainNdxs'),
])  # fmt: skip
def test_wrong_meta_files_are_named(tmp_path, name, variables, message):
    write_official(tmp_path)
    (tmp_path / name).unlink()
    if variables is not None:
        savemat(tmp_path / name, variables)
    with pytest.raises((ValueError, FileNotFoundError), match=f'{name}.*{message}' if variables else message):
        NYUv2Mat(tmp_path)


@pytest.mark.parametrize('package, module', [('h5py', 'h5py'), ('scipy', 'scipy.io')])
def test_a_missing_package_is_named(official, tmp_path, monkeypatch, capsys, package, module):
    monkeypatch.setitem(sys.modules, module, None)
    assert convert('nyuv2', official, tmp_path / 'out') == 1
    assert f'reading it needs the package {package}: pip install {package}' in capsys.readouterr().err


@pytest.mark.parametrize('size', ['128', '128x', '0x4', '1.5x4', 'axb', '1x2x3'])
def test_wrong_sizes_are_refused(tmp_path, size, capsys):
    with pytest.raises(SystemExit):
        convert('gta5', tmp_path, tmp_path / 'out', size=size)
    assert 'is not HEIGHTxWIDTH' in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_write_the_same_files(raw, tmp_path):
    """As a user runs it."""
    convert('cityscapes', raw, tmp_path / 'alone')
    command = [sys.executable, TOOLS / 'cityscapes.py', raw, tmp_path / 'out', '--workers', '2', '--size', '16x32']
    environment = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    done = subprocess.run([*command, '--allow-partial'], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert '4 of 4 samples' in done.stderr and 'val: image 1, label_7 1, label_19 1, depth 1' in done.stdout
    one, two = ({name: data for name, (data, _) in contents(tmp_path / key).items()} for key in ('alone', 'out'))
    assert one == two


def die(source, names):
    os._exit(9)


@pytest.mark.slow
def test_a_killed_worker_is_an_error(tmp_path):
    sample = converting.Sample('a', 'a', dict(image=tmp_path / 'a.npy'))
    plan = converting.Plan(die, dict(train=[sample]), dict(train=1))
    with pytest.raises(ValueError, match='a worker process was killed .*; run again, it goes on from here'):
        converting.convert_all(plan, 1, lambda done, total: None)


@needs_data
@pytest.mark.realdata
def test_real_raw_cityscapes(tmp_path):
    raw = Path(os.environ['MMREPMTL_DATA']) / 'cityscapes_raw'
    assert convert('cityscapes', raw, tmp_path, size='128x256') == 0
    dataset = CityscapesDataset(tmp_path, num_classes=19, targets=['semseg'])
    pipeline = [dict(type='ResizeMultiTask', size=(128, 256), interpolation='area')]
    expected = CityscapesDataset(raw, num_classes=19, targets=['semseg'], pipeline=pipeline)
    assert len(dataset) == 3
    for one, other in zip(dataset, expected, strict=True):
        np.testing.assert_allclose(one['img'], other['img'], atol=1e-6)
        np.testing.assert_array_equal(one['gt']['semseg'], other['gt']['semseg'])


def test_pictures_keep_their_channels(tmp_path):
    rgb = np.zeros((4, 4, 3), np.uint8)
    rgb[..., 0] = 200
    converting.save_array(tmp_path / 'a.png', rgb)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / 'a.png'))[..., ::-1], rgb)
