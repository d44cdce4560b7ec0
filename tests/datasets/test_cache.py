import copy
import os
import pickle

import numpy as np
import pytest
from torch.utils.data import DataLoader

from mmrepmtl.datasets import EpochIndex, MultiTaskCSVDataset, MultiTaskFolderDataset, SynthRoomsDataset
from mmrepmtl.datasets import cache as cache_module
from tests.datasets.own_files import CLASSES, write, write_folders, write_table

NAMES = ['a/1', 'a/2', 'b/1']
LABELS = dict(
    semseg=dict(kind='segmentation', folder='masks', classes=CLASSES),
    edge=dict(kind='binary', folder='edges', suffix='_edge', ids=[0, 255]),
    depth=dict(kind='depth', folder='depth', scale=1000),
    normal=dict(kind='normals', folder='normals'),
    scene=dict(kind='classification', folder='scene', classes=['office', 'kitchen']),
    pose=dict(kind='regression', folder='pose', names=['x', 'y']),
)
AUGMENTED = [
    dict(type='RandomZoom'),
    dict(type='RandomFlip'),
    dict(type='PhotometricJitter'),
    dict(type='PackMultiTaskInputs'),
]


@pytest.fixture
def root(tmp_path):
    write_folders(tmp_path, NAMES)
    (tmp_path / 'pose/a/1.txt').write_text('nan 2')
    return tmp_path


@pytest.fixture
def build(root):
    """Builds a data set with a cache; its ``decoded`` lists the samples that it has decoded."""

    def make(labels=LABELS, cls=MultiTaskFolderDataset, **kwargs):
        class Counting(cls):
            def load_sample(self, data_info):
                self.decoded.append(data_info['sample_idx'])
                return super().load_sample(data_info)

        Counting.__qualname__ = cls.__qualname__
        dataset = Counting(labels, str(root), cache_dir=str(root / 'cache'), **kwargs)
        dataset.decoded = []
        return dataset

    return make


def files(root):
    return sorted((root / 'cache').rglob('*.sample'))


def flat(results):
    """A sample as bytes and types, for exact comparison."""
    parts = dict(img=results['img'], **results['gt'])
    return {
        name: (value.dtype, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value
        for name, value in parts.items()
    } | {key: results[key] for key in ('img_path', 'ori_shape', 'img_shape', 'sample_idx')}


def tensors(data):
    targets = data['data_samples'].targets
    return [data['inputs'].numpy().tobytes(), *(targets[name].numpy().tobytes() for name in sorted(targets))]


def test_samples_come_back_bit_for_bit_without_being_decoded(root, build):
    plain = MultiTaskFolderDataset(LABELS, root)
    first = build()
    for dataset, decoded in ((first, [0, 1, 2]), (first, [0, 1, 2]), (build(), []), (build(indices=2), [])):
        for index in range(len(dataset)):
            assert flat(dataset.load(index)) == flat(plain.load(index))
        assert dataset.decoded == decoded
    assert len(files(root)) == 3
    assert list(build().load(1)['gt']) == list(LABELS)


def test_augmentation_is_the_same(root, build):
    plain = MultiTaskFolderDataset(LABELS, root, pipeline=AUGMENTED)
    for _ in range(2):
        dataset = build(pipeline=AUGMENTED)
        for index in (EpochIndex(i, epoch, 3) for epoch in range(3) for i in range(3)):
            assert tensors(dataset[index]) == tensors(plain[index])
    assert dataset.decoded == []


def test_what_a_transform_writes_does_not_reach_the_file(root, build):
    def spoil(results):
        for value in (results['img'], *(v for v in results['gt'].values() if isinstance(v, np.ndarray))):
            value[...] = 0
        return results

    expected = flat(MultiTaskFolderDataset(LABELS, root).load(0))
    dataset = build(pipeline=[spoil], test_mode=True)
    for _ in range(3):
        assert flat(dataset.load(0)) == expected
        assert dataset[0]['img'].max() == 0
    assert dataset.decoded == [0]


def test_missing_labels_stay_missing(root, build):
    (root / 'depth/a/1.png').unlink()
    for _ in range(2):
        dataset = build(allow_unlabelled=True)
        assert ['depth' in dataset.load(i)['gt'] for i in range(3)] == [False, True, True]
    assert dataset.decoded == []


@pytest.mark.parametrize('name', ['images/a/2.png', 'depth/a/2.png', 'masks/a/2.png', 'scene/a/2.txt', 'pose/a/2.txt'])
@pytest.mark.parametrize('keeps', ['size', 'time'])
def test_a_changed_file_is_decoded_anew(root, build, name, keeps):
    build().load(1)
    path = root / name
    before = os.stat(path)
    # Decoders stop at the end of a picture, so zeros behind it only change the size.
    new = dict(scene=b'office', pose=b'7 8').get(path.parts[-3], path.read_bytes())
    path.write_bytes(new.ljust(before.st_size + (keeps == 'time'), b' ' if path.suffix == '.txt' else b'\0'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + (keeps == 'size')))
    after = os.stat(path)
    assert (after.st_size == before.st_size, after.st_mtime_ns == before.st_mtime_ns) == (
        keeps == 'size',
        keeps == 'time',
    )
    expected, dataset = flat(MultiTaskFolderDataset(LABELS, root).load(1)), build()
    assert flat(dataset.load(1)) == expected and dataset.decoded == [1]


def test_a_deleted_source_is_missed(root, build):
    dataset = build()
    dataset.load(0)
    (root / 'depth/a/1.png').unlink()
    with pytest.raises((FileNotFoundError, ValueError), match=r'depth/a/1.png'):
        dataset.load(0)


@pytest.mark.parametrize('keep', [0, 5, 12, 100, 700, -1])
def test_a_part_of_a_file_is_never_taken_for_whole(root, build, keep):
    expected = flat(build().load(0))
    (path,) = files(root)
    whole = path.read_bytes()
    path.write_bytes(whole[:keep])
    dataset = build()
    assert flat(dataset.load(0)) == expected and dataset.decoded == [0]
    assert path.read_bytes() == whole


def test_a_damaged_header_is_no_sample(root, build):
    expected = flat(build().load(0))
    (path,) = files(root)
    whole = path.read_bytes()
    for damaged in (b'X' + whole[1:], whole[:8] + b'\xff' * 8 + whole[16:], whole[:16] + b'\0' * 40 + whole[56:]):
        path.write_bytes(damaged)
        dataset = build()
        assert flat(dataset.load(0)) == expected and dataset.decoded == [0]


def test_an_interrupted_writer_leaves_nothing_behind(root, build, monkeypatch):
    def killed(source, destination):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', killed)
        with pytest.raises(KeyboardInterrupt):
            build().load(0)
    assert [path for path in (root / 'cache').rglob('*') if path.is_file()] == []
    # The rest of a killed process is not read either.
    dataset = build()
    path = dataset.cache.path(dataset.get_data_info(0))
    path.with_name(f'.{path.name}.0123.tmp').write_bytes(b'MRMTL01\n')
    dataset.load(0)
    assert dataset.decoded == [0] and len(files(root)) == 1


def test_a_file_that_changes_while_it_is_read_is_not_stored(root, build):
    dataset = build()
    load_sample = dataset.load_sample

    def changing(data_info):
        sample = load_sample(data_info)
        os.utime(root / 'depth/a/1.png', ns=(2**62, 2**62))
        return sample

    dataset.load_sample = changing
    dataset.load(0)
    assert files(root) == []


@pytest.mark.parametrize(
    'change',
    [
        dict(targets=['depth']),
        dict(check=False),
        dict(labels=LABELS | dict(depth=LABELS['depth'] | dict(scale=500))),
        dict(labels=LABELS | dict(scene=dict(kind='classification', folder='scene'))),
    ],
)
def test_other_settings_have_files_of_their_own(root, build, change):
    build().load(0)
    dataset = build(**change)
    plain = MultiTaskFolderDataset(**(dict(labels=LABELS, data_root=root) | change))
    assert flat(dataset.load(0)) == flat(plain.load(0)) and dataset.decoded == [0]
    assert len(files(root)) == 2


def test_classes_from_the_data_are_part_of_the_settings(root, build):
    labels = dict(scene=dict(kind='classification', folder='scene'))
    assert build(labels).load(0)['gt'] == dict(scene=1)
    (root / 'scene/b/1.txt').write_text('attic')
    dataset = build(labels)
    assert dataset.load(0)['gt'] == dict(scene=2) and dataset.decoded == [0]


def test_another_row_with_the_same_files_is_another_sample(root):
    labels = dict(scene=dict(kind='classification', classes=['office', 'kitchen']))
    for cells in (['office', 'kitchen'], ['kitchen', 'kitchen']):
        write_table(root / 'all.csv', [dict(image='images/a/1.png', scene=cell) for cell in cells])
        dataset = MultiTaskCSVDataset(labels, 'all.csv', str(root), cache_dir=str(root / 'cache'))
        assert [['office', 'kitchen'][dataset.load(i)['gt']['scene']] for i in range(2)] == cells


def test_other_code_decodes_anew(root, build, monkeypatch):
    build().load(0)
    monkeypatch.setattr(cache_module, 'hash_code', lambda owner: 'other')
    for decoded in ([0], []):
        dataset = build()
        dataset.load(0)
        assert dataset.decoded == decoded
    assert len(files(root)) == 1


def test_the_code_of_a_class_of_ones_own_counts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'rooms_of_mine.py').write_text('class Rooms:\n    pass\n')
    from rooms_of_mine import Rooms

    before = cache_module.hash_code(Rooms)
    assert before == cache_module.hash_code(Rooms) != cache_module.hash_code(MultiTaskFolderDataset)
    (tmp_path / 'rooms_of_mine.py').write_text('class Rooms:\n    scale = 2\n')
    cache_module._hash_file.cache_clear()
    assert cache_module.hash_code(Rooms) != before


def test_several_processes_share_a_folder(root, build):
    expected = [flat(MultiTaskFolderDataset(LABELS, root).load(i)) for i in range(3)]
    order = [0, 1, 2] * 4
    loader = DataLoader(
        Loaded(build(test_mode=True)), batch_size=1, sampler=order, num_workers=2, collate_fn=lambda batch: batch[0]
    )
    assert [flat(results) for results in loader] == [expected[i] for i in order]
    assert len(files(root)) == 3 and list((root / 'cache').rglob('.*')) == []


class Loaded:
    """The samples before the pipeline."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __getitem__(self, index):
        return self.dataset.load(index)


def test_copies_and_pickles_keep_the_cache(root):
    dataset = MultiTaskFolderDataset(LABELS, str(root), cache_dir=str(root / 'cache'))
    dataset.load(0)
    for other in (copy.deepcopy(dataset), pickle.loads(pickle.dumps(dataset)), dataset.get_subset([0, 1])):
        other.load_sample = None
        assert flat(other.load(0)) == flat(dataset.load(0))


def test_random_samples_are_refused(root, build):
    dataset = build()
    load_sample = dataset.load_sample
    dataset.load_sample = lambda data_info: np.random.rand() and load_sample(data_info)
    with pytest.raises(ValueError, match='load_sample draws random numbers, so its samples cannot be cached'):
        dataset.load(0)


def test_samples_without_files_are_refused(tmp_path):
    dataset = SynthRoomsDataset(size=(8, 8), num_samples=1, cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match='SynthRoomsDataset: cache_dir cannot be used, because no file that sample 0'):
        dataset.load(0)


def test_source_files_may_be_named_by_the_class(tmp_path):
    source = write(tmp_path / 'archive.npy', np.zeros(3))

    class Archive(SynthRoomsDataset):
        def source_files(self, data_info, sample):
            return [str(source)]

        def load_sample(self, data_info):
            self.decoded += 1
            return super().load_sample(data_info)

    dataset = Archive(size=(8, 8), num_samples=1, cache_dir=str(tmp_path / 'cache'))
    dataset.decoded = 0
    assert flat(dataset.load(0)) == flat(dataset.load(0)) and dataset.decoded == 1
    np.save(source, np.zeros(4))
    dataset.load(0)
    assert dataset.decoded == 2


def test_arguments_that_no_config_holds_are_refused(root):
    with pytest.raises(ValueError, match='cache_dir needs arguments that a config can hold'):
        MultiTaskFolderDataset(LABELS, root, cache_dir=str(root / 'cache'))
