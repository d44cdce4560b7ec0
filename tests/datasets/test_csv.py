import numpy as np
import pytest
from mmengine.config import ConfigDict

from mmrepmtl.datasets import MultiTaskCSVDataset
from mmrepmtl.registry import DATASETS
from tests.datasets.own_files import CLASSES, make_sample, write_folders, write_table

NAMES = ['1', '2', '3']
LABELS = dict(
    semseg=dict(kind='segmentation', column='mask', classes=CLASSES),
    edge=dict(kind='binary', ids=[0, 255]),
    depth=dict(kind='depth', scale=1000),
    normal=dict(kind='normals'),
    scene=dict(kind='classification', classes=['office', 'kitchen']),
    pose=dict(kind='regression', columns=['x', 'y']),
)


def make_rows():
    return [
        dict(
            image=f'images/{name}.png',
            mask=f'masks/{name}.png',
            edge=f'edges/{name}_edge.png',
            depth=f'depth/{name}.png',
            normal=f'normals/{name}.npy',
            scene=['office', 'kitchen'][number % 2],
            x=number,
            y=-0.5 * number,
            split='val' if number == 2 else 'train',
        )
        for number, name in enumerate(NAMES)
    ]


@pytest.fixture
def root(tmp_path):
    write_folders(tmp_path, NAMES)
    write_table(tmp_path / 'all.csv', make_rows())
    return tmp_path


def build(root, labels=LABELS, **kwargs):
    return MultiTaskCSVDataset(labels, **(dict(data_root=str(root), ann_file='all.csv') | kwargs))


def write_scenes(root, cells, name='all.csv', **more):
    """A table with these cells in the column 'scene'."""
    rows = [dict(image='images/1.png', scene=cell, **{key: value[i] for key, value in more.items()})
            for i, cell in enumerate(cells)]  # fmt: skip
    return write_table(root / name, rows)


def test_all_kinds_from_a_config(root):
    config = dict(type='MultiTaskCSVDataset', data_root=str(root), ann_file='all.csv', labels=LABELS)
    config['pipeline'] = [dict(type='PackMultiTaskInputs')]
    dataset = DATASETS.build(ConfigDict(config))
    assert len(dataset) == 3
    for number in range(3):
        truth, data = make_sample(number), dataset[number]
        targets = data['data_samples'].targets
        np.testing.assert_allclose(data['inputs'].permute(1, 2, 0), truth['image'] / 255, atol=1e-7)
        assert set(targets) == set(LABELS)
        np.testing.assert_array_equal(targets['semseg'], truth['semseg'])
        np.testing.assert_array_equal(targets['edge'], truth['edge'])
        np.testing.assert_allclose(targets['depth'][0], truth['depth'] / 1000, rtol=1e-6)
        np.testing.assert_allclose(targets['normal'].permute(1, 2, 0), truth['normal'], atol=1e-6)
        assert targets['scene'].item() == truth['scene'] and targets['pose'].tolist() == truth['pose'].tolist()
    assert dataset.metainfo['targets']['pose'] == dict(kind='regression', names=['x', 'y'])


def test_paths_start_at_the_table_without_a_data_root(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    for ann_file in (str(root / 'all.csv'), f'{root.name}/all.csv'):
        assert 'depth' in build(root, data_root=None, ann_file=ann_file)[0]['gt']
    rows = make_rows()
    for row in rows:
        row['image'] = str(root / row['image'])
    write_table(root / 'lists/own.csv', rows)
    dataset = build(root, ann_file='lists/own.csv')
    assert dataset[1]['img_path'] == str(root / 'images/2.png') and 'depth' in dataset[1]['gt']


def test_an_empty_cell_is_unlabelled(root):
    rows = make_rows()
    rows[0] |= dict(mask='', scene='', x='', y='')
    rows[1] |= dict(x='')
    rows[2] |= dict(x='nan', depth=' ')
    write_table(root / 'all.csv', rows)
    dataset = build(root)
    assert list(dataset[0]['gt']) == ['edge', 'depth', 'normal']
    np.testing.assert_array_equal(dataset[1]['gt']['pose'], np.array([np.nan, -0.5], np.float32))
    np.testing.assert_array_equal(dataset[2]['gt']['pose'], np.array([np.nan, -1], np.float32))
    assert 'depth' not in dataset[2]['gt']


def test_splits_by_a_column_or_by_files(root):
    train, val = (build(root, split=split, split_column='split') for split in ('train', 'val'))
    assert (len(train), len(val)) == (2, 1) and val.test_mode and not train.test_mode
    assert val[0]['img_path'].endswith('3.png')
    with pytest.raises(ValueError, match=r"all.csv: no row has 'test' in the column 'split', only 'train', 'val'"):
        build(root, split='test', split_column='split')
    for split, rows in (('train', make_rows()[:2]), ('val', make_rows()[2:])):
        write_table(root / f'{split}.csv', rows)
    assert [len(build(root, ann_file='{split}.csv', split=split)) for split in ('train', 'val')] == [2, 1]


def test_classes_from_the_data_are_those_of_all_splits(root):
    labels = dict(scene=dict(kind='classification'))
    write_scenes(root, ['b', 'c', 'b', ''], 'train.csv')
    write_scenes(root, ['c', 'a'], 'val.csv')
    write_scenes(root, ['b', 'c', 'c', 'a'], split=['train', 'train', 'val', 'val'])
    for arguments in (dict(ann_file='{split}.csv'), dict(split_column='split')):
        train, val = (build(root, labels, split=split, **arguments) for split in ('train', 'val'))
        assert train.metainfo['targets'] == val.metainfo['targets'] == dict(
            scene=dict(kind='classification', classes=('a', 'b', 'c')))  # fmt: skip
        assert [d['gt']['scene'] for d in (train[0], train[1], val[0], val[1])] == [1, 2, 2, 0]
    with pytest.raises(ValueError, match=r"'scene' needs classes=\[...\] here"):
        build(root, labels, split='val', ann_file='val.csv')
    assert len(build(root, labels, ann_file='train.csv').metainfo['targets']['scene']['classes']) == 2


def test_whole_numbers_are_class_ids(root):
    labels = dict(scene=dict(kind='classification'))
    write_scenes(root, ['10', '2', *map(str, range(10)), '3.0'])
    dataset = build(root, labels)
    assert dataset.metainfo['targets']['scene']['classes'] == tuple(map(str, range(11)))
    assert [dataset[i]['gt']['scene'] for i in (0, 1, 12)] == [10, 2, 3]
    write_scenes(root, ['1', '2'])
    with pytest.raises(ValueError, match=r'found 2 different numbers up to 2, but no 0; declare classes'):
        build(root, labels)


@pytest.mark.parametrize(
    'classes, cell, expected',
    [
        (['a', 'b'], 'b', 1),
        (['a', 'b'], '1', 1),
        (['a', 'b'], '1.0', 1),
        (['1', '0'], '0', 1),
        (['1', '0'], '1', 0),
        (['a', 'b'], '2', None),
        (['a', 'b'], '-1', None),
        (['a', 'b'], '0.5', None),
        (['a', 'b'], 'A', None),
        # Some class has a number for a name, so a number that is no name is not taken for an id.
        (['1', '3'], '0', None),
        (['1', 'b'], '0', None),
        (['0', 'b'], '1', 1),
    ],
)
def test_names_and_ids_of_classes(root, classes, cell, expected):
    write_scenes(root, [cell])
    labels = dict(scene=dict(kind='classification', classes=classes))
    if expected is None:
        with pytest.raises(
            ValueError, match=rf"all.csv, line 2, column 'scene': found '{cell}', expected one of the 2"
        ):
            build(root, labels)
    else:
        assert build(root, labels)[0]['gt']['scene'] == expected


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(image=''), r"all.csv, line 3, column 'image': is empty, expected the path of an image"),
        (dict(image='images/9.png'), r"all.csv, line 3, column 'image': there is no file .*images/9.png"),
        (dict(mask='9.png'), r"all.csv, line 3, column 'mask': there is no file .*9.png"),
        (dict(x='left'), r"all.csv, line 3, column 'x': found 'left', expected a number"),
        (dict(y='inf'), r"all.csv, line 3, column 'y': found 'inf', expected a number that float32"),
        (dict(y='1e39'), r"line 3, column 'y': found '1e39', expected a number that float32"),
        (
            dict(scene='cellar'),
            r"line 3, column 'scene': found 'cellar', expected one of the 2 classes office, kitchen",
        ),
    ],
)
def test_wrong_cells_are_named_by_file_line_and_column(root, change, message):
    rows = make_rows()
    rows[1] |= change
    write_table(root / 'all.csv', rows)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build(root)


@pytest.mark.parametrize(
    'text, message',
    [
        ('', r"all.csv, line 1: there is no column 'image', only"),
        ('image;scene\n', r"line 1: there is no column 'image', only 'image;scene'"),
        ('image,scene,scene\n', r"line 1: the column 'scene' is there 2 times"),
        ('image,scene\n', r'all.csv: has no rows below the names'),
        ('image,scene\nimages/1.png,office,3\n', r'all.csv, line 2: found 3 cells, expected 2'),
        ('image,scene\n"images/1.png,office\n', r'all.csv: cannot be read as a CSV file'),
    ],
)
def test_damaged_tables_are_named(root, text, message):
    (root / 'all.csv').write_text(text)
    with pytest.raises(ValueError, match=message):
        build(root, dict(scene=LABELS['scene']))


def test_tables_as_spreadsheets_write_them(root):
    text = '\ufeffimage ; scene\r\n\r\n"images/1.png";"kitchen"\r\n;\r\nimages/2.png;office\r\n'
    (root / 'all.csv').write_bytes(text.encode())
    dataset = build(root, dict(scene=LABELS['scene']), delimiter=';')
    assert [dataset[i]['gt']['scene'] for i in range(2)] == [1, 0]


def test_a_missing_table_and_wrong_declarations(root):
    with pytest.raises(FileNotFoundError, match=r'there is no file .*val.csv'):
        build(root, ann_file='{split}.csv', split='val')
    for labels, message in (
        (dict(a=dict(kind='depth', folder='x')), "label 'a' of kind 'depth' has no option 'folder', only kind, scale"),
        (dict(a=dict(kind='regression', columns=['x', 'y'], names=['x'])), "'a' has 1 names for 2 columns"),
        (dict(a=dict(kind='segmentation', classes=['x'], ids=[300])), "label 'a': ids .300. and void .255. must be"),
    ):
        with pytest.raises(ValueError, match=message):
            build(root, labels)


def test_only_the_selected_targets_are_looked_at(root):
    rows = make_rows()
    rows[1] |= dict(mask='9.png', x='left')
    write_table(root / 'all.csv', rows)
    assert list(build(root, targets=['depth', 'scene'])[1]['gt']) == ['depth', 'scene']
