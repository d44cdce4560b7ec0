"""NYUv2's official download: read directly it is what its conversion is; and the real images survive the way."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from mmrepmtl.apis import load_config
from mmrepmtl.apis.select_checkpoint import validates_on_test_set
from mmrepmtl.datasets import NYUv2Dataset
from mmrepmtl.datasets.nyuv2_mat import NYUv2Mat
from tests.datasets.harness import convert
from tests.datasets.nyuv2_files import SIZE, SPLITS, make_image, write_labelled_mat, write_official

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs/nyuv2/rep-mtl_resnet50-d8_deeplab_b8-200e_nyuv2-288x384.py'

needs_data = pytest.mark.skipif(
    'MMREPMTL_DATA' not in os.environ, reason='needs the real NYUv2: set MMREPMTL_DATA to the folder that holds nyuv2'
)


@pytest.fixture(scope='module')
def official(tmp_path_factory):
    folder = tmp_path_factory.mktemp('official')
    write_official(folder)
    return folder


def test_its_training_images_are_divided_too(official, monkeypatch):
    with pytest.raises(ValueError, match="split 'val-part' is empty: .* but there are only"):
        len(NYUv2Dataset(official, 'val-part'))
    monkeypatch.setattr('mmrepmtl.datasets.nyuv2.PART_BLOCK', 2)
    monkeypatch.setattr('mmrepmtl.datasets.nyuv2.PART_HELD_OUT', 1)
    numbers = sorted(SPLITS['train'])
    for split, expected in {'train-part': numbers[::2], 'val-part': numbers[1::2]}.items():
        dataset = NYUv2Dataset(official, split)
        assert [dataset.get_data_info(i)['number'] for i in range(len(dataset))] == expected


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_it_is_read_as_it_is_converted(official, tmp_path, split):
    assert convert('nyuv2', official, tmp_path, size='30x40') == 0
    resize = [dict(type='ResizeMultiTask', size=(30, 40), interpolation='area')]
    dataset, converted = NYUv2Dataset(official, split, pipeline=resize), NYUv2Dataset(tmp_path, split)
    numbers = sorted(SPLITS['train' if split == 'train' else 'val'])
    assert len(dataset) == len(converted) == len(numbers) and dataset.test_mode == (split != 'train')
    for results, other, number in zip(dataset, converted, numbers, strict=True):
        assert results['img_path'] == f'{official}/nyu_depth_v2_labeled.mat: image {number}'
        np.testing.assert_allclose(results['img'], other['img'], atol=1e-6)
        np.testing.assert_array_equal(results['gt']['semseg'], other['gt']['semseg'])
        np.testing.assert_array_equal(results['gt']['depth'], other['gt']['depth'])
        np.testing.assert_allclose(results['gt']['normal'], other['gt']['normal'], atol=1e-6)


def test_folders_win_over_the_file_unless_it_is_asked_for(official, tmp_path):
    for path in official.iterdir():
        (tmp_path / path.name).symlink_to(path)
    assert convert('nyuv2', official, tmp_path / 'converted') == 0
    for split in ('train', 'val'):
        (tmp_path / 'converted' / split).rename(tmp_path / split)
    assert NYUv2Dataset(tmp_path)[0]['img'].shape == (16, 32, 3)
    assert NYUv2Dataset(tmp_path, layout='mat')[0]['img'].shape == (*SIZE, 3)
    with pytest.raises(FileNotFoundError, match='no folder .*, or nyu_depth_v2_labeled.mat'):
        NYUv2Dataset(official, layout='npy')


def test_normals_are_derived_only_where_they_are_wanted(official, monkeypatch):
    monkeypatch.setattr('mmrepmtl.datasets.nyuv2.kinect_normals', None)
    assert list(NYUv2Dataset(official, targets=['depth', 'semseg'])[0]['gt']) == ['depth', 'semseg']


def test_the_cache_saves_the_work(official, tmp_path, monkeypatch):
    arguments = dict(data_root=str(official), cache_dir=str(tmp_path))
    first = [NYUv2Dataset(**arguments)[index] for index in range(2)]
    monkeypatch.setattr(NYUv2Mat, 'read', None)
    for index, results in enumerate(first):
        again = NYUv2Dataset(**arguments)[index]
        np.testing.assert_array_equal(again['img'], results['img'])
        for name, value in results['gt'].items():
            np.testing.assert_array_equal(again['gt'][name], value)


def test_images_that_the_file_lacks_are_named(tmp_path):
    write_official(tmp_path)
    savemat(tmp_path / 'splits.mat', dict(trainNdxs=[[1, 7]], testNdxs=[[2]]))
    with pytest.raises(ValueError, match=r'nyu_depth_v2_labeled.mat: holds 5 images, but splits.mat names image 7'):
        NYUv2Dataset(tmp_path)
    assert len(NYUv2Dataset(tmp_path, 'val')) == 1


def test_wrong_values_are_named_with_their_image(tmp_path):
    images = [make_image(1) for _ in range(5)]
    images[4] = images[4] | dict(labels=np.full(SIZE, 900, np.uint16))
    images[0] = images[0] | dict(depth=-images[0]['depth'])
    write_official(tmp_path, images)
    dataset = NYUv2Dataset(tmp_path)
    for index, message in ((0, "image 1: target 'depth': found values from -"), (1, 'image 5: found label 900')):
        with pytest.raises(ValueError, match=f'nyu_depth_v2_labeled.mat: {message}'):
            dataset[index]


def test_the_recipe_reads_it_and_knows_its_test_set(official):
    cfg = load_config(CONFIG, data_root=str(official))
    cfg.test_dataloader.dataset.split = 'test'
    assert cfg.val_dataloader.dataset != cfg.test_dataloader.dataset and validates_on_test_set(cfg)
    cfg.val_dataloader.dataset.split = 'train'
    assert not validates_on_test_set(cfg)
    assert NYUv2Dataset(official, 'val', pipeline=cfg.test_dataloader.dataset.pipeline)[0]['inputs'].shape == (
        3,
        288,
        384,
    )


def mappings():
    """894 -> 40 and 40 -> 13 of which each class has several labels."""
    to_13 = np.arange(40) % 14
    return np.r_[np.arange(1, 41), 1 + np.arange(854) % 40], to_13


def official_image(dataset, index):
    """A real image at 480 x 640 as the official file has it, with any of the labels of each pixel's class."""
    results, rng = dataset[index], np.random.default_rng(index)
    to_40, to_13 = mappings()
    classes = np.r_[0, to_13[to_40 - 1]]
    larger = dict(dsize=(640, 480), interpolation=cv2.INTER_NEAREST_EXACT)
    label = cv2.resize(results['gt']['semseg'].astype(np.uint8), **larger)
    labels = np.zeros(label.shape, np.uint16)
    for number in range(14):
        where = label == (255 if number == 0 else number - 1)
        labels[where] = rng.choice(np.flatnonzero(classes == number), where.sum())
    image = np.round(255 * cv2.resize(results['img'], (640, 480))).astype(np.uint8)
    return dict(image=image, labels=labels, depth=cv2.resize(results['gt']['depth'], **larger))


@needs_data
@pytest.mark.realdata
def test_real_images_survive_the_conversion(tmp_path):
    """Labels and depth exactly, the image but for two interpolations, normals as near as those of 8-bit depth are."""
    real = NYUv2Dataset(split='train', indices=[0, 200, 400])
    source = tmp_path / 'official'
    write_official(source)
    write_labelled_mat(source / 'nyu_depth_v2_labeled.mat', [official_image(real, index) for index in range(3)])
    to_40, to_13 = mappings()
    savemat(source / 'classMapping40.mat', dict(mapClass=to_40[None].astype(float)))
    savemat(source / 'class13Mapping.mat', dict(labels13=to_13[None]))
    savemat(source / 'splits.mat', dict(trainNdxs=[[1, 2]], testNdxs=[[3]]))
    assert convert('nyuv2', source, tmp_path / 'out', size='288x384') == 0
    converted = [*NYUv2Dataset(tmp_path / 'out'), *NYUv2Dataset(tmp_path / 'out', 'val')]
    for results, expected in zip(converted, real, strict=True):
        gt, other = results['gt'], expected['gt']
        np.testing.assert_array_equal(gt['semseg'], other['semseg'])
        np.testing.assert_allclose(gt['depth'], other['depth'], rtol=1e-6)
        assert np.abs(results['img'] - expected['img']).mean() < 0.01
        known = np.abs(gt['normal']).sum(-1) > 0
        cosine = (gt['normal'] * other['normal']).sum(-1)[known & np.abs(other['normal']).any(-1)]
        assert known.mean() > 0.98 and np.degrees(np.arccos(np.median(cosine))) < 12
