import pickle

import numpy as np
import pytest
from mmengine.config import ConfigDict

from mmrepmtl.datasets import MultiTaskFolderDataset
from mmrepmtl.registry import DATASETS
from tests.datasets.own_files import CLASSES, SIZE, make_sample, write, write_folders

NAMES = ['a/1', 'a/10', 'a/2', 'b/1']
IN_ORDER = ['a/1', 'a/2', 'a/10', 'b/1']
LABELS = dict(
    semseg=dict(kind='segmentation', folder='masks', classes=CLASSES),
    edge=dict(kind='binary', folder='edges', suffix='_edge', ids=[0, 255]),
    depth=dict(kind='depth', folder='depth', scale=1000),
    normal=dict(kind='normals', folder='normals'),
    scene=dict(kind='classification', folder='scene', classes=['office', 'kitchen']),
    pose=dict(kind='regression', folder='pose', names=['x', 'y']),
)


@pytest.fixture
def root(tmp_path):
    write_folders(tmp_path, NAMES)
    return tmp_path


def only(name, **changes):
    return {name: LABELS[name] | changes}


def test_all_kinds_from_a_config(root):
    config = dict(type='MultiTaskFolderDataset', data_root=str(root), labels=LABELS)
    config['pipeline'] = [dict(type='PackMultiTaskInputs')]
    dataset = DATASETS.build(ConfigDict(config))
    assert len(dataset) == 4 and not dataset.test_mode
    for index, name in enumerate(IN_ORDER):
        truth = make_sample(NAMES.index(name))
        data = dataset[index]
        sample = data['data_samples']
        assert sample.img_path == str(root / f'images/{name}.png')
        np.testing.assert_allclose(data['inputs'].permute(1, 2, 0), truth['image'] / 255, atol=1e-7)
        targets = sample.targets
        assert set(targets) == set(LABELS)
        np.testing.assert_array_equal(targets['semseg'], truth['semseg'])
        np.testing.assert_array_equal(targets['edge'], truth['edge'])
        np.testing.assert_allclose(targets['depth'][0], truth['depth'] / 1000, rtol=1e-6)
        np.testing.assert_allclose(targets['normal'].permute(1, 2, 0), truth['normal'], atol=1e-6)
        assert targets['scene'].item() == truth['scene'] and targets['pose'].tolist() == truth['pose'].tolist()
    assert dataset.metainfo['targets']['pose'] == dict(kind='regression', names=['x', 'y'])
    assert tuple(dataset.metainfo['targets']['semseg']['classes']) == tuple(CLASSES)
    assert set(dataset.metainfo['targets']['depth']) == {'kind'}


def test_only_the_selected_targets_are_looked_for(root):
    for path in (root / 'depth').rglob('*.png'):
        path.unlink()
    dataset = MultiTaskFolderDataset(LABELS, root, targets=['scene', 'semseg'])
    assert list(dataset[0]['gt']) == ['scene', 'semseg']


def test_a_missing_file_is_an_error_or_unlabelled(root):
    (root / 'masks/a/10.png').unlink()
    with pytest.raises(FileNotFoundError, match=r'1 of 4 files are missing in .*masks, the first is a/10.png'):
        MultiTaskFolderDataset(LABELS, root)
    dataset = MultiTaskFolderDataset(LABELS, root, allow_unlabelled=True)
    assert ['semseg' in dataset[i]['gt'] for i in range(4)] == [True, True, False, True]


@pytest.mark.parametrize(
    'change, error, message',
    [
        (dict(folder='mask'), FileNotFoundError, r"no file of 'semseg' in .*mask, expected <i>.png or <i>.npy"),
        (dict(suffix='_label'), FileNotFoundError, r"no file of 'semseg' in .*masks, expected <i>_label.png"),
        (dict(folder='masks/a'), ValueError, r"has the name of an image: '1' there, 'a/1' among the images"),
    ],
)
def test_unlabelled_is_not_allowed_to_hide_a_wrong_folder(root, change, error, message):
    with pytest.raises(error, match=message):
        MultiTaskFolderDataset(only('semseg', **change), root, allow_unlabelled=True)


def test_a_split_may_be_unlabelled_as_a_whole(root):
    (root / 'masks/b/1.png').unlink()
    (root / 'val.txt').write_text('b/1\n')
    arguments = dict(split='val', split_file='{split}.txt', allow_unlabelled=True)
    assert MultiTaskFolderDataset(only('semseg'), root, **arguments)[0]['gt'] == {}


def test_splits_by_files_and_by_folders(root, tmp_path_factory):
    (root / 'train.txt').write_text('a/10.png\n\na/1\n')
    (root / 'val.txt').write_text('b/1\n')
    arguments = dict(labels=only('scene'), data_root=root, split_file='{split}.txt')
    train, val = MultiTaskFolderDataset(**arguments), MultiTaskFolderDataset(split='val', **arguments)
    assert [train[i]['img_path'][-8:] for i in range(len(train))] == ['/a/1.png', 'a/10.png']
    assert len(val) == 1 and val.test_mode and not train.test_mode
    (root / 'val.txt').write_text('b/1\nb/7\n')
    with pytest.raises(FileNotFoundError, match=r'1 of the 2 images of .*val.txt are missing in .*, the first is b/7'):
        MultiTaskFolderDataset(split='val', **arguments)
    with pytest.raises(FileNotFoundError, match=r'no split_file .*test.txt'):
        MultiTaskFolderDataset(split='test', **arguments)

    base = tmp_path_factory.mktemp('splits')
    for split, names in (('train', ['1', '2', '3']), ('val', ['4'])):
        write_folders(base / split, names)
    labels = only('semseg', folder='{split}/masks')
    sizes = [len(MultiTaskFolderDataset(labels, base, '{split}/images', split=split)) for split in ('train', 'val')]
    assert sizes == [3, 1]


@pytest.mark.parametrize('folder', ['scene', None])
def test_classes_from_the_data_are_those_of_all_splits(tmp_path, folder):
    for split, name in (('train', 'b'), ('train', 'c'), ('val', 'c'), ('test', 'a')):
        write(tmp_path / split / f'images/{name}/1.png', np.zeros((4, 4, 3), np.uint8))
        path = tmp_path / split / f'scene/{name}/1.txt'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    label = dict(kind='classification') | (dict(folder='{split}/scene') if folder else {})
    found = {}
    for split in ('train', 'val', 'test'):
        dataset = MultiTaskFolderDataset(dict(scene=label), tmp_path, '{split}/images', split=split)
        assert dataset.metainfo['targets']['scene']['classes'] == ('a', 'b', 'c')
        found[split] = [dataset[i]['gt']['scene'] for i in range(len(dataset))]
    assert found == dict(train=[1, 2], val=[2], test=[0])


def test_classes_of_a_test_split_alone_are_refused(root):
    label = dict(scene=dict(kind='classification', folder='scene'))
    assert MultiTaskFolderDataset(label, root).metainfo['targets']['scene']['classes'] == ('kitchen', 'office')
    with pytest.raises(ValueError, match=r"'scene' needs classes=\[...\] here.*'{split}'"):
        MultiTaskFolderDataset(label, root, split='val')


def test_an_image_beside_the_class_folders_is_named(root):
    write(root / 'images/0.png', np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r'images.0.png: is in no folder below .*images that would name its class'):
        MultiTaskFolderDataset(dict(scene=dict(kind='classification')), root)


def test_classes_from_a_file_keep_its_order(root):
    (root / 'classes.txt').write_text('office\nkitchen\n')
    dataset = MultiTaskFolderDataset(only('scene', classes='classes.txt'), root)
    assert dataset.metainfo['targets']['scene']['classes'] == ('office', 'kitchen')
    assert [dataset[i]['gt']['scene'] for i in range(4)] == [make_sample(NAMES.index(n))['scene'] for n in IN_ORDER]


def test_two_files_of_one_name_are_refused(root):
    write(root / 'images/a/1.jpg', np.zeros((*SIZE, 3), np.uint8))
    with pytest.raises(ValueError, match=r"are both the sample 'a/1'; remove one of them"):
        MultiTaskFolderDataset(LABELS, root)


def test_files_of_the_system_are_no_samples(root):
    (root / 'images/a/._1.png').write_bytes(b'x')
    (root / 'images/Thumbs.db').write_bytes(b'x')
    assert len(MultiTaskFolderDataset(LABELS, root)) == 4


def test_ids_and_void_of_masks(tmp_path):
    write(tmp_path / 'images/1.png', np.zeros((2, 3, 3), np.uint8))
    path = write(tmp_path / 'masks/1.png', np.array([[10, 20, 0], [10, 10, 255]], np.uint8))

    def read(**options):
        labels = dict(semseg=dict(kind='segmentation', folder='masks', classes=['a', 'b'], **options))
        return MultiTaskFolderDataset(labels, tmp_path)[0]['gt']['semseg'].tolist()

    assert read(ids=[20, 10], void=[0, 255]) == [[1, 0, 255], [1, 1, 255]]
    with pytest.raises(ValueError, match=r'masks.1.png: found the label ids \[0\], expected 10, 20, or 255 \(void\)'):
        read(ids=[20, 10])
    with pytest.raises(ValueError, match=r'found the label ids \[10, 20\], expected 0 to 1, or 255 \(void\)'):
        read()
    # 255 is a class where it is declared as one.
    write(path, np.array([[0, 255, 0], [0, 0, 255]], np.uint8))
    assert read(ids=[0, 255]) == [[0, 1, 0], [0, 0, 1]]
    path.unlink()
    write(tmp_path / 'masks/1.npy', np.array([[0, 1, -1], [0, 0, 255]]))
    assert read() == [[0, 1, 255], [0, 0, 255]]
    write(tmp_path / 'masks/1.npy', np.array([[0, 1, 300], [0, 0, 255]]))
    with pytest.raises(ValueError, match=r'found the label ids \[300\]'):
        read()


@pytest.mark.parametrize('scale, stored, metres', [(1000, 1500, 1.5), (5000, 5000, 1.0), (0.5, 3, 6.0)])
def test_depth_is_divided_by_the_scale(tmp_path, scale, stored, metres):
    write(tmp_path / 'images/1.png', np.zeros((*SIZE, 3), np.uint8))
    write(tmp_path / 'depth/1.png', np.full(SIZE, stored, np.uint16))
    labels = dict(depth=dict(kind='depth', folder='depth', scale=scale, inverse=True))
    dataset = MultiTaskFolderDataset(labels, tmp_path)
    assert dataset[0]['gt']['depth'].dtype == np.float32 and (dataset[0]['gt']['depth'] == metres).all()
    assert dataset.metainfo['targets']['depth'] == dict(kind='depth', inverse=True)


def test_depth_without_a_scale(tmp_path):
    write(tmp_path / 'images/1.png', np.zeros((*SIZE, 3), np.uint8))
    labels = dict(depth=dict(kind='depth', folder='depth'))
    for array in (np.ones(SIZE, np.uint16), np.ones(SIZE, np.int32)):
        path = write(tmp_path / f'depth/1{".png" if array.dtype == np.uint16 else ".npy"}', array)
        with pytest.raises(ValueError, match=r'found whole numbers; declare scale'):
            MultiTaskFolderDataset(labels, tmp_path)[0]
        path.unlink()
    write(tmp_path / 'depth/1.npy', np.full((*SIZE, 1), 2.5))
    assert (MultiTaskFolderDataset(labels, tmp_path)[0]['gt']['depth'] == np.full(SIZE, 2.5)).all()
    (tmp_path / 'depth/1.npy').unlink()
    write(tmp_path / 'depth/1.png', np.ones(SIZE, np.uint8))
    with pytest.raises(ValueError, match=r'found \(16, 20\) uint8, expected a 16-bit grey picture of depth'):
        MultiTaskFolderDataset(labels, tmp_path)[0]


@pytest.mark.parametrize(
    'name, file, text, message',
    [
        ('scene', 'scene/a/1.txt', 'cellar', r"1.txt: found 'cellar', expected one of the 2 classes office, kitchen"),
        ('scene', 'scene/a/1.txt', '2', r"found '2', expected one of .* or an id from 0 to 1"),
        ('pose', 'pose/a/1.txt', '1 2 3', r'1.txt: found 3 numbers, expected 2'),
        ('pose', 'pose/a/1.txt', '1 north', r"1.txt: found 'north', expected a number"),
        ('normal', 'normals/a/1.npy', '', r'1.npy: cannot be read as an array'),
        ('depth', 'depth/a/1.png', 'no picture', r'1.png: cannot be read as an image'),
    ],
)
def test_damaged_files_are_named(root, name, file, text, message):
    (root / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        MultiTaskFolderDataset(only(name), root)[0]


def test_numbers_and_ids_in_text_files(root):
    (root / 'pose/a/1.txt').write_text('nan, 3')
    (root / 'scene/a/1.txt').write_text(' 1 \n')
    gt = MultiTaskFolderDataset(only('pose') | only('scene'), root)[0]['gt']
    assert np.isnan(gt['pose'][0]) and gt['pose'][1] == 3 and gt['scene'] == 1


@pytest.mark.parametrize(
    'labels, message',
    [
        ({}, 'labels is empty'),
        (
            dict(a=dict(kind='boxes', folder='x')),
            "label 'a' has the kind 'boxes', expected one of segmentation, binary",
        ),
        (dict(a=dict(kind='depth')), "label 'a' must declare its folder"),
        (
            dict(a=dict(kind='depth', folder='x', classes=['y'])),
            "'a' of kind 'depth' has no option 'classes', only kind",
        ),
        (dict(a=dict(kind='segmentation', folder='x')), "'a' of kind 'segmentation' must declare its 'classes'"),
        (dict(a=dict(kind='segmentation', folder='x', classes=[])), "'a' has no classes"),
        (dict(a=dict(kind='segmentation', folder='x', classes=['y', 'y'])), "'a' has the class 'y' twice"),
        (dict(a=dict(kind='segmentation', folder='x', classes=['y'], ids=[1, 2])), "'a': 2 ids for 1 classes"),
        (dict(a=dict(kind='segmentation', folder='x', classes='xy', ids=[3, 3])), 'no file .*xy of classes'),
        (dict(a=dict(kind='segmentation', folder='x', classes=['x', 'y'], ids=[3, 3])), 'must be different numbers'),
        (dict(a=dict(kind='binary', folder='x')), "'a' of kind 'binary' must declare its 'ids'"),
        (dict(a=dict(kind='depth', folder='x', scale=0)), "label 'a': scale is 0, expected a positive number"),
        (dict(a=dict(kind='regression', folder='x')), "'a' must declare the names of its numbers"),
        ({'a.b': dict(kind='depth', folder='x')}, "the target name 'a.b' cannot be used"),
        (dict(keys=dict(kind='depth', folder='x')), "'keys' cannot be used: it is an attribute"),
    ],
)
def test_wrong_declarations_are_named(root, labels, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        MultiTaskFolderDataset(labels, root)


def test_the_data_set_survives_pickling(root):
    dataset = pickle.loads(pickle.dumps(MultiTaskFolderDataset(LABELS, root)))
    assert list(dataset[0]['gt']) == list(LABELS)
