import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmrepmtl.datasets import CityscapesDataset
from mmrepmtl.datasets.cityscapes import CLASSES, LABELS, PALETTES
from mmrepmtl.datasets.transforms import RandomZoom, ResizeMultiTask
from mmrepmtl.registry import DATASETS, MODELS
from tests.datasets.street_files import (
    FRAMES,
    SIZE,
    classes,
    make_frame,
    raw_paths,
    write_archive,
    write_png,
    write_raw_cityscapes,
)

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / 'configs' / 'cityscapes').glob('*.py'))
PACK = [dict(type='PackMultiTaskInputs')]

needs_data = pytest.mark.skipif(
    'MMREPMTL_DATA' not in os.environ, reason='needs raw Cityscapes frames: set MMREPMTL_DATA to the folder above'
)


@pytest.fixture(params=['npy', 'raw'])
def layout(request):
    return request.param


@pytest.fixture
def root(tmp_path, layout):
    dict(npy=write_archive, raw=write_raw_cityscapes)[layout](tmp_path)
    return tmp_path


@pytest.mark.parametrize('num_classes', [7, 19])
@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_both_layouts_give_the_same_arrays(root, split, num_classes):
    dataset = CityscapesDataset(root, split=split, num_classes=num_classes)
    names = FRAMES['train' if split == 'train' else 'val']
    assert len(dataset) == len(names) and dataset.test_mode == (split != 'train')
    for results, name in zip(dataset, names, strict=True):
        frame, gt = make_frame(name), results['gt']
        np.testing.assert_allclose(results['img'], frame['image'] / 255, atol=1e-6)
        np.testing.assert_array_equal(gt['semseg'], classes(frame['ids'], num_classes))
        np.testing.assert_allclose(gt['depth'], frame['disparity'] / 65535, rtol=1e-6)
        assert (gt['semseg'].dtype, gt['depth'].dtype) == (np.int64, np.float32)
    assert len(dataset.metainfo['targets']['semseg']['classes']) == num_classes


def test_the_unit_is_that_of_the_archive(tmp_path):
    """Its largest value is 0.4922; infinitely far (1) is valid, no measurement (0) is not."""
    write_raw_cityscapes(tmp_path)
    path = raw_paths(tmp_path, 'val', FRAMES['val'][0])['disparity']
    write_png(path, np.where(np.arange(64) < 32, [[32257]], [[1]]).astype(np.uint16).repeat(32, 0))
    depth = CityscapesDataset(tmp_path, split='val')[0]['gt']['depth']
    assert depth.max() == pytest.approx(0.4922, abs=5e-5) and 0 < depth.min() < 2e-5
    write_png(path, np.zeros(SIZE, np.uint16))
    assert CityscapesDataset(tmp_path, split='val')[0]['gt']['depth'].max() == 0


def test_zoom_multiplies_inverse_depth(root):
    dataset = CityscapesDataset(root)
    results = dataset[0]
    before = results['gt']['depth'].copy()
    RandomZoom().zoom(results, 2.0, 8, 16)
    # Twice as large is half as far away: twice the inverse depth, of the window's nearest pixels.
    window = before[8 : 8 + SIZE[0] // 2, 16 : 16 + SIZE[1] // 2]
    np.testing.assert_array_equal(results['gt']['depth'], 2 * window.repeat(2, 0).repeat(2, 1))
    assert (window > 0).any()


def test_packed_sample(root):
    sample = CityscapesDataset(root, pipeline=PACK)[0]['data_samples']
    shapes = {name: tuple(value.shape) for name, value in sample.targets.items()}
    assert shapes == dict(semseg=SIZE, depth=(1, *SIZE)) and sample.targets['semseg'].dtype == torch.int64


def test_the_labels_of_libmtl_are_found_and_named_sets_win(tmp_path):
    write_archive(tmp_path, label_folders=('label',))
    dataset = CityscapesDataset(tmp_path)
    np.testing.assert_array_equal(dataset[0]['gt']['semseg'], classes(make_frame(FRAMES['train'][0])['ids'], 7))
    write_archive(tmp_path, label_folders=('label_7',))
    (tmp_path / 'train' / 'label' / '0.npy').write_bytes(b'')
    assert CityscapesDataset(tmp_path)[0]['gt']['semseg'].shape == SIZE


def test_a_missing_label_set_is_named(tmp_path):
    write_archive(tmp_path, label_folders=('label_7',))
    with pytest.raises(
        FileNotFoundError, match=r'num_classes=19 needs the folder .*label_19, there are only depth, im'
    ):
        CityscapesDataset(tmp_path, num_classes=19)
    assert list(CityscapesDataset(tmp_path, num_classes=19, targets=['depth'])[0]['gt']) == ['depth']
    assert list(CityscapesDataset(tmp_path, num_classes=19, allow_unlabelled=True)[0]['gt']) == ['depth']


def test_missing_files_are_named(root, layout):
    if layout == 'npy':
        path, name, lost = root / 'train' / 'depth' / '1.npy', '1.npy', r'.*train.depth'
    else:
        path = raw_paths(root, 'train', FRAMES['train'][1])['disparity']
        name, lost = path.name, r'.*disparity.train'
    path.unlink()
    with pytest.raises(
        FileNotFoundError, match=rf'Cityscapes.*: 1 of 3 files are missing in {lost}, the first is {name}'
    ):
        CityscapesDataset(root)
    dataset = CityscapesDataset(root, allow_unlabelled=True, pipeline=PACK)
    assert [sorted(data['data_samples'].targets) for data in dataset] == [
        ['depth', 'semseg'], ['semseg'], ['depth', 'semseg']]  # fmt: skip


def test_an_empty_folder_and_a_wrong_layout_are_named(tmp_path):
    expected = r'no images in .*train.image or .*leftImg8bit.train, expected files <i>.npy or \*/<i>_leftImg8bit.png'
    with pytest.raises(FileNotFoundError, match=expected):
        CityscapesDataset(tmp_path)
    write_archive(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"expected files \*/<i>_leftImg8bit.png \(layout 'raw'\)"):
        CityscapesDataset(tmp_path, layout='raw')


@pytest.mark.parametrize('key, change, message', [
    ('ids', lambda a: np.full_like(a, 40), r'labelIds.png: found label ids \[40\], expected labelIds from 0 to 33'),
    ('ids', lambda a: np.dstack([a] * 3), 'labelIds.png: found a picture of mode RGB, expected an 8-bit PNG of label'),
    ('ids', lambda a: a[1:], r"labelIds.png: target 'semseg': found \(31, 64\) int64, expected \(32, 64\)"),
    ('disparity', lambda a: (a // 256).astype(np.uint8), r'disparity.png: found \(32, 64\) uint8, expected a 16-bit'),
    ('disparity', lambda a: a[:, 1:], r"disparity.png: target 'depth': found \(32, 63\) float32, expected \(32, 64\)"),
])  # fmt: skip
def test_broken_raw_files_are_named(tmp_path, key, change, message):
    write_raw_cityscapes(tmp_path)
    path = raw_paths(tmp_path, 'val', FRAMES['val'][0])[key]
    write_png(path, change(make_frame(FRAMES['val'][0])[key]))
    with pytest.raises(ValueError, match=message):
        CityscapesDataset(tmp_path, split='val')[0]


@pytest.mark.parametrize('key', ['image', 'ids', 'disparity'])
def test_truncated_raw_files_are_named(tmp_path, key):
    write_raw_cityscapes(tmp_path)
    path = raw_paths(tmp_path, 'val', FRAMES['val'][0])[key]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=f'{path.name}: cannot be read as an image.*expected an? '):
        CityscapesDataset(tmp_path, split='val')[0]


@pytest.mark.parametrize('folder, change, message', [
    ('label_7', lambda a: np.where(a == a.max(), 7, a), r"label_7.0.npy: target 'semseg': found labels \[7\]"),
    ('depth', lambda a: a[1:], r"depth.0.npy: target 'depth': found \(31, 64\) float32, expected \(32, 64\)"),
    ('image', lambda a: np.moveaxis(a, -1, 0), r'image.0.npy: image: found \(3, 32, 64\) float32, expected'),
    ('depth', lambda a: np.array(['far']), r'depth.0.npy: found <U3, expected \(H, W, 1\) depth'),
])  # fmt: skip
def test_broken_arrays_are_named(tmp_path, folder, change, message):
    write_archive(tmp_path)
    path = tmp_path / 'val' / folder / '0.npy'
    np.save(path, change(np.load(path)))
    with pytest.raises(ValueError, match=message):
        CityscapesDataset(tmp_path, split='val')[0]


def test_a_truncated_array_is_named(tmp_path):
    write_archive(tmp_path)
    path = tmp_path / 'val' / 'image' / '0.npy'
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match='image.0.npy: cannot be read as an array .*, expected .H, W, 3. float'):
        CityscapesDataset(tmp_path, split='val')[0]


@pytest.mark.parametrize('arguments, message', [
    (dict(split='trainval'), "split is 'trainval'"),
    (dict(num_classes=8), 'num_classes is 8, expected 7 or 19'),
    (dict(layout='image'), "layout is 'image', expected 'auto', 'npy' or 'raw'"),
])  # fmt: skip
def test_wrong_arguments_are_named(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=f'CityscapesDataset: {message}'):
        CityscapesDataset(tmp_path, **arguments)


def test_data_root_from_the_environment(tmp_path, monkeypatch):
    write_archive(tmp_path / 'cityscapes')
    monkeypatch.setenv('MMREPMTL_DATA', str(tmp_path))
    assert len(CityscapesDataset()) == 3


def test_tables_of_classes():
    assert len(LABELS) == len(PALETTES[19]) == 19 and len(CLASSES[7]) == len(PALETTES[7]) == 7
    for palette in PALETTES.values():
        assert len({tuple(colour) for colour in palette}) == len(palette)


@pytest.mark.filterwarnings('ignore:.*the sampler gives plain indices')
@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_configs_fit_the_data_set(path, tmp_path):
    write_archive(tmp_path)
    cfg = Config.fromfile(path)
    height, width = (int(number) for number in path.stem.rpartition('-')[2].split('x'))
    heads = cfg.model.heads
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        dataset = DATASETS.build(dict(cfg[key].dataset) | dict(data_root=str(tmp_path)))
        targets = dataset.metainfo['targets']
        assert set(heads) == set(targets) == {evaluator.task for evaluator in cfg.val_evaluator}
        assert heads.semseg.num_classes == len(targets['semseg']['classes']) == 7
        assert tuple(dataset[0]['inputs'].shape) == (3, height, width)
    assert cfg.train_dataloader.batch_size == int(path.stem.split('_b')[1].split('-')[0])


def test_the_paper_recipe():
    cfg = Config.fromfile(next(path for path in CONFIGS if 'resnet50' in path.name))
    assert (cfg.train_cfg.max_epochs, cfg.train_dataloader.batch_size, cfg.train_dataloader.drop_last) == (
        200,
        64,
        True,
    )
    assert cfg.param_scheduler == [dict(type='MultiStepLR', milestones=[100], gamma=0.5, by_epoch=True)]
    assert cfg.optim_wrapper.optimizer == dict(type='Adam', lr=1e-4, weight_decay=1e-5)
    assert [t['type'] for t in cfg.train_dataloader.dataset.pipeline] == ['ResizeMultiTask', 'PackMultiTaskInputs']


@pytest.mark.filterwarnings('ignore:.*the sampler gives plain indices')
def test_the_small_config_trains_a_step(tmp_path):
    write_archive(tmp_path)
    cfg = Config.fromfile(next(path for path in CONFIGS if 'resnet18' in path.name))
    model = MODELS.build(cfg.model)
    dataset = DATASETS.build(dict(cfg.train_dataloader.dataset) | dict(data_root=str(tmp_path)))
    batch = [dataset[i] for i in range(2)]
    data = model.data_preprocessor(
        dict(inputs=[item['inputs'] for item in batch], data_samples=[item['data_samples'] for item in batch]), True
    )
    losses = model(**data, mode='loss')
    assert all(torch.isfinite(value).all() for value in losses.values())
    assert {name.split('.')[0] for name in losses} >= {'semseg', 'depth'}


@needs_data
@pytest.mark.realdata
def test_real_raw_frames():
    root = Path(os.environ['MMREPMTL_DATA']) / 'cityscapes_raw'
    sizes = [ResizeMultiTask((128, 256), 'area')]
    dataset = CityscapesDataset(root, targets=['semseg'], num_classes=19)
    small = CityscapesDataset(root, targets=['semseg'], num_classes=7, pipeline=sizes)
    assert len(dataset) == len(small) == 3
    for full, reduced in zip(dataset, small, strict=True):
        label, image = full['gt']['semseg'], full['img']
        assert label.shape == image.shape[:2] == (1024, 2048)
        # German streets: the lower middle is road, most pixels are labelled, vegetation is green, the road is grey.
        names = dataset.metainfo['targets']['semseg']['classes']
        assert np.mean(label[650:750, 900:1100] == names.index('road')) > 0.9
        assert 0.05 < np.mean(label == 255) < 0.2
        green = image[label == names.index('vegetation')].mean(0)
        assert green[1] == green.max()
        share = {i: np.mean(reduced['gt']['semseg'] == i) for i in range(7)}
        exact = cv2.resize((label <= 1).astype(np.float32), (256, 128), interpolation=cv2.INTER_AREA).mean()
        assert reduced['img'].shape == (128, 256, 3) and share[0] == pytest.approx(exact, abs=0.01)
    with pytest.raises(FileNotFoundError, match='3 of 3 files are missing in .*disparity'):
        CityscapesDataset(root)
