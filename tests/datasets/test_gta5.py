import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from mmrepmtl.datasets import CityscapesDataset, GTA5Dataset
from mmrepmtl.datasets.gta5 import HIGHEST_LABEL_ID
from tests.datasets.street_files import SIZE, classes, make_frame, write_archive, write_gta5, write_png

NAMES = ('00001', '00002', '00010')


@pytest.fixture
def root(tmp_path):
    write_gta5(tmp_path, NAMES)
    return tmp_path


def test_numbers_of_the_palette_are_read_not_its_colours(root):
    dataset = GTA5Dataset(root)
    assert len(dataset) == 3 and not dataset.test_mode
    for results, name in zip(dataset, NAMES, strict=True):
        frame = make_frame(name, highest=HIGHEST_LABEL_ID)
        np.testing.assert_array_equal(results['gt']['semseg'], classes(frame['ids'], 19))
        np.testing.assert_allclose(results['img'], frame['image'] / 255, atol=1e-6)
        # Read as a picture, the labels would be colours.
        assert cv2.imread(str(root / 'labels' / f'{name}.png'), cv2.IMREAD_UNCHANGED).ndim == 3


def test_grey_labels_are_read_as_well(root):
    ids = make_frame('00001', highest=HIGHEST_LABEL_ID)['ids']
    write_png(root / 'labels' / '00001.png', ids)
    np.testing.assert_array_equal(GTA5Dataset(root)[0]['gt']['semseg'], classes(ids, 19))


def test_the_classes_are_those_of_cityscapes(root, tmp_path):
    write_archive(tmp_path / 'cityscapes')
    cityscapes = CityscapesDataset(tmp_path / 'cityscapes', num_classes=19, targets=['semseg'])
    assert GTA5Dataset(root).metainfo['targets'] == cityscapes.metainfo['targets']


def test_converted_layout(root, tmp_path):
    converted = tmp_path / 'small'
    write_png(converted / 'image' / '00001.png', make_frame('00001')['image'])
    write_png(converted / 'label' / '00001.png', classes(make_frame('00001')['ids'], 19).astype(np.uint8))
    results = GTA5Dataset(converted)[0]
    np.testing.assert_array_equal(results['gt']['semseg'], classes(make_frame('00001')['ids'], 19))
    # The official folders are other ones, so that labelIds are never taken for classes.
    with pytest.raises(FileNotFoundError, match=r"no images in .*image, expected files <i>.png \(layout 'image'\)"):
        GTA5Dataset(root, layout='image')


@pytest.mark.parametrize('suffix', ['.mat', '.txt'])
@pytest.mark.parametrize('split, numbers', [('train', [10, 1]), ('test', [2])])
def test_split_files(root, suffix, split, numbers):
    if suffix == '.mat':
        ids = dict(train=[[10, 1]], val=[[2]], test=[[2]])
        savemat(root / 'split.mat', {f'{name}Ids': np.array(value).T for name, value in ids.items()})
    else:
        (root / 'split.txt').write_text('\n'.join(f'images/{number:05d}.png' for number in numbers) + '\n\n')
    dataset = GTA5Dataset(root, split=split, split_file=f'split{suffix}')
    found = [results['img_path'].rpartition('/')[2] for results in dataset]
    assert found == [f'{number:05d}.png' for number in sorted(numbers)] and dataset.test_mode == (split == 'test')


def test_labels_of_nearly_the_size_are_fitted(tmp_path):
    """As 60 of the official ones need it."""
    write_gta5(tmp_path, ['00001'], size=(104, 208))
    ids = np.repeat([[7, 24]], 102, 0).repeat(103, 1).astype(np.uint8)
    write_png(tmp_path / 'labels' / '00001.png', ids)
    label = GTA5Dataset(tmp_path)[0]['gt']['semseg']
    assert label.shape == (104, 208) and (label[:, :103] == 0).all() and (label[:, 105:] == 11).all()


def test_errors_of_split_files(root):
    with pytest.raises(FileNotFoundError, match='there is no split_file .*nowhere.txt'):
        GTA5Dataset(root, split='train', split_file='nowhere.txt')
    (root / 'split.txt').write_text('00001\n00077\n00078\n')
    with pytest.raises(FileNotFoundError, match=r'2 of 3 images of .*split.txt are missing in .*, the first is 00077'):
        GTA5Dataset(root, split='train', split_file='split.txt')
    (root / 'split.txt').write_text('\n')
    with pytest.raises(ValueError, match='split.txt: names no image, expected the official split.mat, or a text file'):
        GTA5Dataset(root, split='train', split_file='split.txt')
    savemat(root / 'split.mat', dict(trainIds=[[1]]))
    with pytest.raises(ValueError, match='split.mat: found no variable valIds, expected the official split.mat'):
        GTA5Dataset(root, split='val', split_file='split.mat')
    (root / 'split.mat').write_bytes(b'no matrix')
    with pytest.raises(ValueError, match='split.mat: cannot be read as a MATLAB file'):
        GTA5Dataset(root, split='val', split_file='split.mat')


@pytest.mark.parametrize('arguments, message', [
    (dict(split='trainval'), "split is 'trainval', expected 'all'"),
    (dict(split='val'), "split is 'val' and split_file is None; .* need a split_file"),
    (dict(split_file='split.mat'), "split is 'all' and split_file is 'split.mat'"),
    (dict(layout='npy'), "layout is 'npy', expected 'auto', 'raw' or 'image'"),
])  # fmt: skip
def test_wrong_arguments_are_named(root, arguments, message):
    with pytest.raises(ValueError, match=f'GTA5Dataset: {message}'):
        GTA5Dataset(root, **arguments)


def test_broken_files_are_named(root):
    path = root / 'labels' / '00001.png'
    write_png(path, np.full(SIZE, 35, np.uint8))
    with pytest.raises(ValueError, match=r'labels.00001.png: found label ids \[35\], expected labelIds from 0 to 34'):
        GTA5Dataset(root)[0]
    write_png(path, np.full((32, 60), 7, np.uint8))
    message = r'labels.00001.png: found \(32, 60\), expected about \(32, 64\), the size of .*images.00001.png'
    with pytest.raises(ValueError, match=message):
        GTA5Dataset(root)[0]
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(path)
    with pytest.raises(ValueError, match='00001.png: found a picture of mode RGB, expected an 8-bit PNG of label ids'):
        GTA5Dataset(root)[0]
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match='00001.png: cannot be read as an image'):
        GTA5Dataset(root)[0]
    path.unlink()
    with pytest.raises(FileNotFoundError, match='1 of 3 files are missing in .*labels, the first is 00001.png'):
        GTA5Dataset(root)
