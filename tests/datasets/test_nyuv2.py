import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mmrepmtl.datasets import NYUv2Dataset
from mmrepmtl.registry import DATASETS

SIZE = (24, 32)
PACK = [dict(type='PackMultiTaskInputs')]
NUMBERS = dict(train=(0, 2, 10), test=(1, 3))

needs_data = pytest.mark.skipif(
    'MMREPMTL_DATA' not in os.environ, reason='needs the real NYUv2: set MMREPMTL_DATA to the folder that holds nyuv2'
)


def make_sample(number):
    """A smooth image, blocks of labels, a ramp of depth, normals; the first rows are void or invalid."""
    rng = np.random.default_rng(number)
    rows, cols = np.mgrid[: SIZE[0], : SIZE[1]].astype(np.float32)
    img = np.stack([rows / SIZE[0], cols / SIZE[1], np.full(SIZE, number / 20)], axis=-1).astype(np.float32)
    label = np.repeat(np.repeat(rng.integers(0, 13, size=(6, 8)), 4, 0), 4, 1)
    label[:3] = -1
    depth = (1 + rows / 10 + cols / 100 + number).astype(np.float32)
    depth[:2] = 0
    normal = np.broadcast_to(np.float32([0.48, -0.8, 0.36]), (*SIZE, 3)).copy()
    normal[12:] = [-0.6, 0, 0.8]
    normal[:8] = 0
    return dict(image=img, label=label, depth=depth, normal=normal)


def write_npy(root, folder, number, label_dtype=np.float64):
    sample = make_sample(number)
    sample['label'] = sample['label'].astype(label_dtype)
    sample['depth'] = sample['depth'][..., None]
    for name, array in sample.items():
        path = root / folder / name / f'{number}.npy'
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, array)


def write_pictures(root, folder, number):
    sample = make_sample(number)
    label = np.where(sample['label'] < 0, 255, sample['label'])
    coded = np.round(sample['normal'] * 127 + 128).astype(np.uint8)
    for name, ending, array in [
        ('image', 'jpg', np.round(sample['image'] * 255).astype(np.uint8)[..., ::-1]),
        ('label', 'png', label.astype(np.uint8)),
        ('depth', 'png', np.round(sample['depth'] * 1000).astype(np.uint16)),
        ('normal', 'jpg', coded[..., ::-1]),
    ]:
        path = root / folder / name / f'{number:04d}.{ending}'
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), array)


@pytest.fixture(params=['npy', 'image'])
def layout(request):
    return request.param


@pytest.fixture
def root(tmp_path, layout):
    for split, numbers in NUMBERS.items():
        for number in numbers:
            if layout == 'npy':
                write_npy(tmp_path, dict(train='train', test='val')[split], number)
            else:
                write_pictures(tmp_path, split, number)
    return tmp_path


def test_both_layouts_give_the_same_arrays(root, layout):
    dataset = NYUv2Dataset(root)
    assert len(dataset) == 3
    for i, number in enumerate(NUMBERS['train']):
        results, sample = dataset[i], make_sample(number)
        assert Path(results['img_path']).stem in (f'{number}', f'{number:04d}')
        gt, pictures = results['gt'], layout == 'image'
        np.testing.assert_allclose(results['img'], sample['image'], atol=0.05 if pictures else 0)
        np.testing.assert_array_equal(gt['semseg'], np.where(sample['label'] < 0, 255, sample['label']))
        np.testing.assert_allclose(gt['depth'], sample['depth'], atol=5.1e-4 if pictures else 0)
        # JPEG blurs across the borders of the blocks at rows 8 and 12 (a block of colour has 16 rows).
        np.testing.assert_array_equal((gt['normal'][:7] == 0).all(), True)
        rows = np.r_[17 : SIZE[0]]
        np.testing.assert_allclose(gt['normal'][rows], sample['normal'][rows], atol=0.03 if pictures else 1e-6)
        if not pictures:
            np.testing.assert_allclose(gt['normal'], sample['normal'], atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(gt['normal'][rows], axis=-1), 1, atol=1e-5)
        assert (gt['semseg'].dtype, gt['depth'].dtype, gt['normal'].dtype) == (np.int64, np.float32, np.float32)


def test_packed_sample(root):
    sample = NYUv2Dataset(root, pipeline=PACK)[0]['data_samples']
    shapes = {name: tuple(value.shape) for name, value in sample.targets.items()}
    assert shapes == dict(semseg=SIZE, depth=(1, *SIZE), normal=(3, *SIZE))
    assert sample.targets['semseg'].dtype == torch.int64


def test_numbers_in_names_are_ordered_by_value(tmp_path):
    write_npy(tmp_path, 'train', 0)
    for folder in (tmp_path / 'train').iterdir():
        for name in ('room_10', 'room_9', 'hall_11'):
            (folder / f'{name}.npy').write_bytes((folder / '0.npy').read_bytes())
        (folder / '0.npy').unlink()
    assert [Path(results['img_path']).stem for results in NYUv2Dataset(tmp_path)] == ['hall_11', 'room_9', 'room_10']


@pytest.mark.parametrize('split', ['val', 'test'])
def test_val_and_test_are_the_same(root, split):
    dataset = NYUv2Dataset(root, split=split)
    assert len(dataset) == 2 and dataset.test_mode
    assert not NYUv2Dataset(root).test_mode


def test_selected_targets_are_the_only_ones_read(root):
    for path in list((root / 'train' / 'normal').iterdir()):
        path.unlink()
    dataset = DATASETS.build(dict(type='NYUv2Dataset', data_root=str(root), targets=['depth', 'semseg'], indices=2))
    assert len(dataset) == 2 and list(dataset[0]['gt']) == ['depth', 'semseg']


def test_data_root_from_the_environment(root, monkeypatch):
    root.rename(root.parent / 'nyuv2')
    monkeypatch.setenv('MMREPMTL_DATA', str(root.parent))
    assert len(NYUv2Dataset()) == 3
    (root.parent / 'nyuv2').rename(root)
    monkeypatch.delenv('MMREPMTL_DATA')
    with pytest.raises(ValueError, match='pass data_root, or set the environment variable MMREPMTL_DATA'):
        NYUv2Dataset()


def test_a_missing_file_is_named(root, layout):
    name = dict(npy='2.npy', image='0002.png')[layout]
    (root / 'train' / 'depth' / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf'1 of 3 files are missing in .*depth, the first is {name}'):
        NYUv2Dataset(root)
    dataset = NYUv2Dataset(root, allow_unlabelled=True, pipeline=PACK)
    assert [sorted(dataset[i]['data_samples'].targets) for i in range(3)] == [
        ['depth', 'normal', 'semseg'],
        ['normal', 'semseg'],
        ['depth', 'normal', 'semseg'],
    ]


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no folder .*val or .*test for split .val.; data_root must hold'):
        NYUv2Dataset(tmp_path, split='val')
    (tmp_path / 'train').mkdir()
    with pytest.raises(FileNotFoundError, match=r'no images in .*image, expected files <i>.npy or <i>.jpg or <i>.png'):
        NYUv2Dataset(tmp_path)
    write_pictures(tmp_path, 'train', 1)
    with pytest.raises(FileNotFoundError, match=r"expected files <i>.npy \(layout 'npy'\)"):
        NYUv2Dataset(tmp_path, layout='npy')


@pytest.mark.parametrize('label_dtype', [np.int8, np.int64, np.float32])
def test_label_types_of_the_archive(tmp_path, label_dtype):
    write_npy(tmp_path, 'train', 0, label_dtype)
    label = NYUv2Dataset(tmp_path)[0]['gt']['semseg']
    assert (label[:3] == 255).all() and label[3:].max() < 13


@pytest.mark.parametrize(
    'folder, change, message',
    [
        ('label', lambda a: a + 0.5, 'label.0.npy: found values that are no whole numbers'),
        ('label', lambda a: np.where(a == a.max(), np.nan, a), 'no whole numbers'),
        ('label', lambda a: np.where(a == a.max(), 40, a), r"label.0.npy: target 'semseg': found labels \[40\]"),
        ('label', lambda a: np.where(a == -1, -2, a), r'found labels \[-2\]'),
        ('depth', lambda a: -a, "depth.0.npy: target 'depth': found values from -"),
        ('depth', lambda a: np.full_like(a, np.nan), 'found values from nan'),
        ('depth', lambda a: a[1:], r"'depth': found \(23, 32\) float32, expected \(24, 32\)"),
        (
            'normal',
            lambda a: np.where(a == 0.8, np.nan, a).astype(np.float32) * np.float32(np.nan),
            'length such as nan',
        ),
        ('normal', lambda a: a[..., 0], r'normal.0.npy: found \(24, 32\), expected \(H, W, 3\)'),
        ('image', lambda a: a * 255, r'image.0.npy: image: found values from 0 to '),
        ('image', lambda a: (a * 255).astype(np.uint8), r'image.0.npy: found \(24, 32, 3\) uint8, expected .* float'),
        ('image', lambda a: np.array([{}]), 'image.0.npy: cannot be read as an array'),
    ],
)
def test_broken_arrays_are_named(tmp_path, folder, change, message):
    write_npy(tmp_path, 'train', 0)
    path = tmp_path / 'train' / folder / '0.npy'
    np.save(path, change(np.load(path)), allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        NYUv2Dataset(tmp_path)[0]


@pytest.mark.parametrize(
    'name, array, message',
    [
        ('label/0001.png', np.zeros((24, 32, 3), np.uint8), r'label.0001.png: found \(24, 32, 3\) uint8, expected an'),
        ('depth/0001.png', np.zeros((24, 32), np.uint8), r'depth.0001.png: found \(24, 32\) uint8, expected a 16-bit'),
        ('depth/0001.png', np.zeros((12, 32), np.uint16), r"depth.0001.png: target 'depth': found \(12, 32\)"),
        ('image/0001.jpg', None, 'image.0001.jpg: cannot be read as an image, expected an RGB image'),
    ],
)
def test_broken_pictures_are_named(tmp_path, name, array, message):
    write_pictures(tmp_path, 'train', 1)
    path = tmp_path / 'train' / name
    if array is None:
        path.write_bytes(b'no picture')
    else:
        cv2.imwrite(str(path), array)
    with pytest.raises(ValueError, match=message):
        NYUv2Dataset(tmp_path)[0]


@pytest.mark.parametrize('name', ['image/0001.jpg', 'label/0001.png', 'depth/0001.png', 'normal/0001.jpg'])
@pytest.mark.parametrize('kept', [0, 0.6, 0.97])
def test_pictures_that_were_cut_off_are_named(tmp_path, name, kept):
    """OpenCV shows the rest of a JPEG in grey."""
    write_pictures(tmp_path, 'train', 1)
    path = tmp_path / 'train' / name
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(ValueError, match=f'{path.name}: cannot be read as an image, expected an? '):
        NYUv2Dataset(tmp_path)[0]


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(split='trainval'), "split is 'trainval'"),
        (dict(layout='raw'), "layout is 'raw', expected 'auto', 'npy', 'image' or 'mat'"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        NYUv2Dataset(tmp_path, **arguments)


@pytest.mark.parametrize('layout', ['npy', 'image'])
def test_the_parts_of_the_training_images_are_blocks_that_share_nothing(tmp_path, layout):
    for number in range(123):
        if layout == 'npy':
            write_npy(tmp_path, 'train', number)
        else:
            write_pictures(tmp_path, 'train', number)
    parts = {split: NYUv2Dataset(tmp_path, split) for split in ('train', 'train-part', 'val-part')}
    numbers = {
        split: [int(Path(part.get_data_info(i)['paths']['image']).stem) for i in range(len(part))]
        for split, part in parts.items()
    }
    assert numbers['val-part'] == [*range(40, 50), *range(90, 100)]
    assert sorted(numbers['train-part'] + numbers['val-part']) == numbers['train'] == list(range(123))
    assert [part.test_mode for part in parts.values()] == [False, False, True]


def test_classes_and_palette():
    meta = NYUv2Dataset.METAINFO['targets']['semseg']
    assert len(meta['classes']) == len(meta['palette']) == 13
    assert len({tuple(colour) for colour in meta['palette']}) == 13
    assert list(meta['classes']) == sorted(meta['classes'])


@needs_data
@pytest.mark.realdata
def test_real_counts_and_formats():
    for split, count in NYUv2Dataset.OFFICIAL_COUNTS.items():
        dataset = NYUv2Dataset(split=split)
        assert len(dataset) == count
        results = dataset[count - 1]
        assert results['img'].shape == (288, 384, 3)
        assert {name: value.shape for name, value in results['gt'].items()} == dict(
            semseg=(288, 384), depth=(288, 384), normal=(288, 384, 3)
        )


@needs_data
@pytest.mark.realdata
def test_real_values_are_plausible():
    dataset = NYUv2Dataset(split='train')
    void, depths, heights = [], [], {name: [] for name in ('floor', 'ceiling', 'wall')}
    classes = dataset.metainfo['targets']['semseg']['classes']
    for index in range(0, 795, 12):
        gt = dataset[index]['gt']
        void.append((gt['semseg'] == 255).mean())
        depths.append(gt['depth'].ravel()[::50])
        length = np.linalg.norm(gt['normal'], axis=-1)
        # Compression makes a vector too short to be a direction here and there.
        assert (length == 0).mean() < 1e-4
        np.testing.assert_allclose(length[length > 0], 1, atol=1e-5)
        # Surfaces that are seen face the camera: y, into the scene, is negative.
        assert (gt['normal'][..., 1] < 0.1).mean() > 0.85
        for name, values in heights.items():
            values.append(gt['normal'][..., 2][gt['semseg'] == classes.index(name)])
    depths = np.concatenate(depths)
    assert np.mean(void) == pytest.approx(0.17, abs=0.03)
    assert depths.min() > 0.4 and depths.max() <= 10 and 2 < np.median(depths) < 3.5
    # Floors look up, ceilings down, walls sideways.
    medians = {name: np.median(np.concatenate(values)) for name, values in heights.items()}
    assert medians['floor'] > 0.8 and medians['ceiling'] < -0.5 and abs(medians['wall']) < 0.2


@needs_data
@pytest.mark.realdata
def test_real_depth_and_normals_agree():
    """Normals by finite differences of depth, with the Kinect's intrinsics at 384 x 288, against the stored ones."""
    fx, fy, cx, cy = (0.6 * value for value in (518.86, 519.47, 325.58, 253.74))
    dataset, angles = NYUv2Dataset(split='test'), []
    for index in range(0, 654, 60):
        gt = dataset[index]['gt']
        cols, rows = np.meshgrid(np.arange(384) + 0.5, np.arange(288) + 0.5)
        depth = cv2.GaussianBlur(gt['depth'], (0, 0), 3)
        points = np.stack([(cols - cx) / fx * depth, depth, -(rows - cy) / fy * depth], axis=-1)
        normal = np.cross(np.gradient(points, axis=0), np.gradient(points, axis=1))
        normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
        normal *= -np.sign((normal * points).sum(-1, keepdims=True))
        angles.append(np.degrees(np.arccos(np.clip((normal * gt['normal']).sum(-1), -1, 1))).ravel())
    assert np.median(np.concatenate(angles)) < 12
