"""SynthRooms: the data set, and what a user of its labels relies on."""

import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrepmtl.datasets.synth import CLASSES, PALETTE
from mmrepmtl.datasets.synth_rooms import SPLITS, SynthRoomsDataset
from mmrepmtl.registry import DATASETS
from tests.datasets.geometry_reference import fitted_normals, unproject

RENDERED = 120
FINGERPRINT = """
import hashlib
from mmrepmtl.datasets.synth_rooms import SynthRoomsDataset
data = SynthRoomsDataset(size=(24, 32), num_samples=4, split='val', seed=7)
for index in (3, 0):
    sample = data[index]
    for value in (sample['img'], *sample['gt'].values()):
        print(hashlib.sha256(value.tobytes()).hexdigest())
"""


@pytest.fixture(scope='module')
def many() -> list[dict]:
    data = SynthRoomsDataset(size=(48, 64), num_samples=RENDERED)
    return [data[index] for index in range(len(data))]


def _angle(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    cross = np.linalg.norm(np.cross(first, second), axis=-1)
    return np.degrees(np.arctan2(cross, (first * second).sum(-1)))


def test_same_sample_in_every_process_and_in_any_order() -> None:
    data = SynthRoomsDataset(size=(24, 32), num_samples=4, split='val', seed=7)
    samples = {index: data[index] for index in range(4)}
    here = [
        hashlib.sha256(value.tobytes()).hexdigest()
        for index in (3, 0)
        for value in (samples[index]['img'], *samples[index]['gt'].values())
    ]
    environment = {**os.environ, 'PYTHONHASHSEED': '11'}
    there = subprocess.run(
        [sys.executable, '-c', FINGERPRINT],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert there[-len(here) :] == here


def test_no_room_occurs_twice_among_seeds_splits_and_indices() -> None:
    sets = [SynthRoomsDataset(num_samples=10, split=split, seed=seed) for seed in (0, 1, 2) for split in SPLITS]
    rooms = {data.room(index).size for data in sets for index in range(10)}
    assert len(rooms) == 3 * len(SPLITS) * 10


def test_the_scene_depends_neither_on_the_size_nor_on_the_targets_nor_on_the_number_of_samples() -> None:
    small = SynthRoomsDataset(size=(33, 45), num_samples=3)
    # Three times as many pixels: every middle one has the ray of a pixel of the small image.
    large = SynthRoomsDataset(size=(99, 135), num_samples=9, targets=('depth',))
    for index in range(3):
        one, other = small[index]['gt']['depth'], large[index]['gt']['depth'][1::3, 1::3]
        assert np.mean(np.abs(one - other) < 1e-4) > 0.995


@pytest.mark.parametrize('size', [(96, 128), (37, 53), (61, 20), (1, 1), (2, 201)])
def test_formats_at_any_size(size: tuple[int, int]) -> None:
    data = SynthRoomsDataset(size=size, num_samples=3)
    for index in range(3):
        sample = data[index]
        img, gt = sample['img'], sample['gt']
        assert sample['img_shape'] == sample['ori_shape'] == size
        assert (img.shape, img.dtype) == ((*size, 3), np.float32)
        assert img.min() >= 0 and img.max() <= 1
        assert (gt['semseg'].shape, gt['semseg'].dtype) == (size, np.int64)
        assert gt['semseg'].min() >= 0 and gt['semseg'].max() < len(CLASSES)
        assert (gt['depth'].shape, gt['depth'].dtype) == (size, np.float32)
        assert gt['depth'].min() > 0.3 and gt['depth'].max() < 8.5
        assert (gt['normal'].shape, gt['normal'].dtype) == ((*size, 3), np.float32)
        np.testing.assert_allclose(np.linalg.norm(gt['normal'], axis=-1), 1, atol=1e-5)


def test_depth_and_normals_agree() -> None:
    data = SynthRoomsDataset(size=(96, 128), num_samples=12)
    share, angles = [], []
    for index in range(12):
        gt, camera = data[index]['gt'], data.room(index).camera
        focal = camera.focal(data.size)
        points = unproject(gt['depth'], focal, focal, 64, 48)
        # From depth alone: where the inverse depth is linear in the image over 3 x 3 pixels there is a plane.
        normals, planar = fitted_normals(points)
        angles.append(_angle(normals, gt['normal'])[planar])
        share.append(planar.mean())
        towards_camera = (gt['normal'] * points).sum(-1) / np.linalg.norm(points, axis=-1)
        assert towards_camera.max() < 1e-3, 'a normal is turned away from the camera'
    assert np.mean(share) > 0.6
    angles = np.concatenate(angles)
    assert np.median(angles) < 0.1 and np.percentile(angles, 99) < 1


def test_the_floor_is_below_the_camera_and_faces_up(many: list[dict]) -> None:
    data = SynthRoomsDataset(size=(48, 64), num_samples=RENDERED)
    for index in range(0, RENDERED, 10):
        gt, camera = many[index]['gt'], data.room(index).camera
        focal = camera.focal(data.size)
        world = unproject(gt['depth'], focal, focal, 32, 24) @ camera.rotation.T + camera.position
        normal = gt['normal'] @ camera.rotation.T
        for name, height, up in (('floor', 0.0, 1), ('ceiling', data.room(index).size[2], -1)):
            on = gt['semseg'] == CLASSES.index(name)
            np.testing.assert_allclose(world[on][:, 2], height, atol=1e-4)
            np.testing.assert_allclose(normal[on], np.broadcast_to((0, 0, up), normal[on].shape), atol=1e-5)


def test_every_class_is_frequent_enough_to_be_learned(many: list[dict]) -> None:
    counts = np.stack([np.bincount(sample['gt']['semseg'].ravel(), minlength=len(CLASSES)) for sample in many])
    assert counts.shape[1] == len(CLASSES) == len(PALETTE) >= 7
    frequency = counts.sum(0) / counts.sum()
    assert frequency.min() > 0.007 and frequency.max() < 0.5
    assert (counts > 0).mean(0).min() > 0.25, 'a class occurs in too few images'


def test_pictures_are_neither_dark_nor_blank_and_depths_vary(many: list[dict]) -> None:
    means = np.array([sample['img'].mean() for sample in many])
    contrast = np.array([sample['img'].std() for sample in many])
    assert means.min() > 0.25 and means.max() < 0.75 and contrast.min() > 0.04
    depth = np.stack([sample['gt']['depth'] for sample in many])
    assert np.percentile(depth, 1) < 1.3 and np.percentile(depth, 99) > 5


def test_colour_alone_does_not_give_the_class(many: list[dict]) -> None:
    """The best table from colour (8 x 8 x 8 cells) to class is hardly better on new rooms than `wall` everywhere."""

    def cells(samples: list[dict]) -> np.ndarray:
        levels = np.stack([(sample['img'] * 7.999).astype(int) for sample in samples])
        return (levels @ (64, 8, 1)).ravel()

    def labels(samples: list[dict]) -> np.ndarray:
        return np.stack([sample['gt']['semseg'] for sample in samples]).ravel()

    train, test = many[:80], many[80:]
    table = np.zeros((512, len(CLASSES)))
    np.add.at(table, (cells(train), labels(train)), 1)
    constant = np.mean(labels(test) == 0)
    assert np.mean(table.argmax(1)[cells(test)] == labels(test)) < constant + 0.1


def test_label_fraction_leaves_out_the_same_labels_every_time() -> None:
    fractions = dict(semseg=0.3, depth=0.0, normal=1.0)
    data = SynthRoomsDataset(size=(2, 2), num_samples=150, label_fraction=fractions)
    present = [set(data[index]['gt']) for index in range(150)]
    assert all('normal' in names and 'depth' not in names for names in present)
    assert np.mean(['semseg' in names for names in present]) == pytest.approx(0.3, abs=0.12)
    again = SynthRoomsDataset(size=(3, 5), num_samples=60, label_fraction=fractions, targets=('semseg',))
    assert [set(again[index]['gt']) for index in range(60)] == [names & {'semseg'} for names in present[:60]]
    full = SynthRoomsDataset(size=(2, 2), num_samples=20)
    assert all(len(full[index]['gt']) == 3 for index in range(20))
    np.testing.assert_array_equal(full[5]['img'], data[5]['img'])


def test_built_from_a_config_and_pickled_for_workers() -> None:
    config = dict(type='SynthRoomsDataset', size=(12, 16), num_samples=5, split='test', targets=['depth', 'semseg'])
    data = pickle.loads(pickle.dumps(DATASETS.build(config)))
    assert len(data) == 5
    assert list(data.metainfo['targets']) == list(data[4]['gt']) == ['depth', 'semseg']
    assert data.metainfo['targets']['semseg']['classes'] == CLASSES


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(split='dev'), "split is 'dev'"),
        (dict(size=(0, 5)), 'size is'),
        (dict(num_samples=0), 'num_samples is 0'),
        (dict(seed=-1), 'seed is -1'),
        (dict(targets=('edges',)), 'edges'),
        (dict(label_fraction=dict(edges=0.5)), 'label_fraction names'),
        (dict(label_fraction=dict(depth=1.5)), 'label_fraction'),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SynthRoomsDataset(**arguments)


@pytest.mark.realdata
def test_same_axes_and_same_depth_as_the_real_nyuv2(many: list[dict]) -> None:
    """One function turns depth into normals; on both data sets its result is what the files, or the renderer, say."""
    if 'MMREPMTL_DATA' not in os.environ:
        pytest.skip('MMREPMTL_DATA does not name the folder with the real data')
    root = Path(os.environ['MMREPMTL_DATA']) / 'nyuv2' / 'train'
    real = []
    for path in sorted((root / 'label').glob('*.png'))[::60]:
        normal = np.asarray(Image.open(root / 'normal' / f'{path.stem}.jpg'), float)
        real.append(
            dict(
                semseg=np.asarray(Image.open(path)),
                depth=np.asarray(Image.open(root / 'depth' / path.name)) / 1000,
                normal=(normal - 128) / 127,
            )
        )
    data = SynthRoomsDataset(size=(48, 64), num_samples=RENDERED)
    focal = [data.room(index).camera.focal(data.size) for index in range(40)]
    # Kinect intrinsics at 640 x 480, and the pictures are 0.6 times that.
    kinect = [(518.86 * 0.6, 519.47 * 0.6, 325.58 * 0.6, 253.74 * 0.6)] * len(real)
    for samples, cameras, step, floor, wall, least in (
        (real, kinect, 6, 4, 11, 0.75),
        (
            [sample['gt'] for sample in many[:40]],
            [(f, f, 32, 24) for f in focal],
            1,
            CLASSES.index('floor'),
            CLASSES.index('wall'),
            0.95,
        ),
    ):
        label = np.concatenate([sample['semseg'].ravel() for sample in samples])
        normal = np.concatenate([sample['normal'].reshape(-1, 3) for sample in samples])
        derived = np.concatenate(
            [
                fitted_normals(unproject(sample['depth'], *camera), step)[0].reshape(-1, 3)
                for sample, camera in zip(samples, cameras, strict=True)
            ]
        )
        assert normal[label == floor].mean(0)[2] > 0.5
        assert normal[label == wall].mean(0)[1] < -0.5
        valid = np.isfinite(derived).all(1) & (np.linalg.norm(normal, axis=1) > 0.5)
        for axis in range(3):
            assert np.corrcoef(derived[valid, axis], normal[valid, axis])[0, 1] > least - 0.25, axis
        assert np.median((derived[valid] * normal[valid]).sum(1)) > least
