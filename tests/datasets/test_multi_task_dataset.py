import copy
import random
import warnings

import numpy as np
import pytest
import torch
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmrepmtl.datasets import EpochIndex, EpochInfiniteSampler, EpochSampler, MultiTaskDataset
from mmrepmtl.datasets.base import isolated_rng
from mmrepmtl.datasets.transforms import RandomFlip

SIZE = (12, 16)
AUGMENTATION = [
    dict(type='RandomZoom', normal_zoom='geometric'),
    dict(type='RandomFlip'),
    dict(type='PhotometricJitter'),
    # A transform of mmcv's, which draws from NumPy's global generator: a key that nothing else reads.
    dict(type='RandomChoiceResize', scales=[(16, 12), (15, 12), (14, 12), (13, 12)], keep_ratio=False),
    dict(type='ResizeMultiTask', size=SIZE),
]
PACK = [dict(type='PackMultiTaskInputs')]


class Rooms(MultiTaskDataset):
    """Five images made from their numbers; ``broken`` maps a sample to what is wrong with it."""

    METAINFO = dict(
        targets=dict(
            semseg=dict(
                kind='segmentation', classes=('wall', 'floor', 'bed'), palette=[[0, 0, 0], [1, 1, 1], [2, 2, 2]]
            ),
            depth=dict(kind='depth'),
            normal=dict(kind='normals'),
            scene=dict(kind='classification', classes=('kitchen', 'office')),
            pose=dict(kind='regression', names=('x', 'y')),
        )
    )

    def __init__(self, broken=None, **kwargs):
        self.broken = broken or {}
        super().__init__(**kwargs)

    def load_data_list(self):
        return [dict(number=number) for number in range(5)]

    def load_sample(self, data_info):
        number = data_info['number']
        rng = np.random.default_rng(number)
        normal = rng.normal(size=(*SIZE, 3)).astype(np.float32)
        normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
        gt = dict(
            semseg=rng.integers(0, 3, size=SIZE),
            depth=rng.uniform(1, 4, size=SIZE).astype(np.float32),
            normal=normal,
            scene=number % 2,
            pose=np.array([number, np.nan], np.float32),
        )
        sample = dict(
            img=rng.uniform(size=(*SIZE, 3)).astype(np.float32),
            gt=gt,
            img_path=f'{number}.jpg',
            gt_paths=dict(depth=f'{number}_depth.png'),
        )
        if number in self.broken:
            self.broken[number](sample)
        return sample


def draw_from_all(results):
    """Uses each of the generators that a transform may use."""
    noise = random.random() + np.random.rand() + torch.rand(()).item()
    results['img'] = np.clip(results['img'] * np.float32(noise / 3), 0, 1)
    return results


def rng_states():
    numpy_state = np.random.get_state()
    return random.getstate(), numpy_state[1].tolist(), numpy_state[2], torch.get_rng_state().tolist()


def collect(batch):
    return batch


def epochs_through_a_loader(num_workers, persistent, epochs, seed=3):
    dataset = Rooms(pipeline=[*AUGMENTATION, draw_from_all, *PACK])
    sampler = EpochSampler(dataset, seed=seed)
    loader = DataLoader(
        dataset,
        batch_size=2,
        sampler=sampler,
        num_workers=num_workers,
        persistent_workers=persistent,
        collate_fn=collect,
    )
    found = {}
    for epoch in epochs:
        sampler.set_epoch(epoch)
        for data in (data for batch in loader for data in batch):
            found[epoch, data['data_samples'].sample_idx] = data
    return found


def fingerprint(data):
    targets = data['data_samples'].targets
    return [data['inputs'].tolist(), *(torch.nan_to_num(targets[name]).tolist() for name in sorted(targets))]


@pytest.fixture(scope='module')
def reference():
    return {key: fingerprint(data) for key, data in epochs_through_a_loader(0, False, [0, 1]).items()}


@pytest.mark.parametrize('num_workers, persistent', [(0, False), (2, False), (2, True)])
def test_augmentation_does_not_depend_on_workers(reference, num_workers, persistent):
    found = epochs_through_a_loader(num_workers, persistent, [0, 1])
    assert len(found) == 10
    assert {key: fingerprint(data) for key, data in found.items()} == reference


@pytest.mark.parametrize('num_workers, persistent', [(0, False), (2, True)])
def test_restart_at_a_later_epoch_goes_on_as_the_uninterrupted_run(reference, num_workers, persistent):
    np.random.seed(77)
    torch.manual_seed(5)
    found = epochs_through_a_loader(num_workers, persistent, [1])
    assert {key: fingerprint(data) for key, data in found.items()} == {
        key: value for key, value in reference.items() if key[0] == 1
    }


def test_epochs_samples_and_seeds_differ(reference):
    for number in range(5):
        assert reference[0, number] != reference[1, number]
    other_seed = epochs_through_a_loader(0, False, [0], seed=4)
    for number in range(5):
        assert fingerprint(other_seed[0, number]) != reference[0, number]
    # Not merely other images: the random numbers differ between samples.
    dataset = Rooms(pipeline=[lambda results: np.random.rand()])
    drawn = {dataset[EpochIndex(i, epoch, seed)] for i in range(5) for epoch in range(3) for seed in range(3)}
    assert len(drawn) == 45


def test_the_runs_seed_arrives_through_mmengine(reference):
    config = dict(
        dataset=Rooms(pipeline=[*AUGMENTATION, draw_from_all, *PACK]),
        batch_size=5,
        num_workers=0,
        sampler=dict(type='EpochSampler'),
        collate_fn=collect,
    )
    with DefaultScope.overwrite_default_scope('mmrepmtl'):
        loader = Runner.build_dataloader(config, seed=3)
    loader.sampler.set_epoch(1)
    for data in next(iter(loader)):
        assert fingerprint(data) == reference[1, data['data_samples'].sample_idx]


def test_infinite_sampler_gives_the_same_samples(reference):
    dataset = Rooms(pipeline=[*AUGMENTATION, draw_from_all, *PACK])
    sampler = EpochInfiniteSampler(dataset, seed=3)
    sampler.skip(5)
    stream = iter(sampler)
    for _ in range(5):
        index = next(stream)
        assert fingerprint(dataset[index]) == reference[1, int(index)]


@pytest.mark.parametrize('test_mode, index', [(False, EpochIndex(2, 1, 5)), (True, 2)])
def test_loading_leaves_the_global_generators_alone(test_mode, index):
    dataset = Rooms(pipeline=[*AUGMENTATION, draw_from_all, *PACK], test_mode=test_mode)
    before = rng_states()
    dataset[index]
    assert rng_states() == before


def test_generators_come_back_after_an_error():
    def fail(results):
        np.random.rand()
        raise KeyError('broken transform')

    before = rng_states()
    with pytest.raises(KeyError, match='broken transform'):
        Rooms(pipeline=[fail])[EpochIndex(0, 0, 0)]
    assert rng_states() == before


def test_isolated_rng_takes_any_integers():
    drawn = set()
    for key in [(0, 0, 0), (-1, 0, 0), (2**40, 0, 0), (0, 1, 0), (0, 0, 1)]:
        with isolated_rng(*key):
            drawn.add((random.random(), np.random.rand(), torch.rand(()).item()))
    assert len(drawn) == 5
    assert all(len({values[i] for values in drawn}) == 5 for i in range(3))


def test_plain_index_in_test_mode_is_deterministic():
    dataset = Rooms(pipeline=[draw_from_all, *PACK], test_mode=True)
    first = fingerprint(dataset[3])
    np.random.seed(1)
    assert fingerprint(dataset[3]) == first == fingerprint(dataset[-2])
    assert fingerprint(Rooms(pipeline=[draw_from_all, *PACK], test_mode=True, seed=1)[3]) != first


def test_plain_index_in_training_uses_global_generators_and_says_so_once():
    dataset = Rooms(pipeline=[draw_from_all, *PACK])
    with pytest.warns(UserWarning, match='EpochSampler') as caught:
        first, second = fingerprint(dataset[3]), fingerprint(dataset[3])
    assert first != second and len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        Rooms(pipeline=PACK)[0]


def test_wrappers_keep_the_epoch():
    pipeline = [lambda results: (results['sample_idx'], np.random.rand())]
    joined = ConcatDataset([Rooms(pipeline=pipeline), Rooms(pipeline=pipeline)])
    values = {epoch: [joined[EpochIndex(i, epoch, 0)] for i in range(10)] for epoch in range(2)}
    assert [number for number, _ in values[0]] == [0, 1, 2, 3, 4] * 2
    assert len({value for drawn in values.values() for _, value in drawn}) == 20
    repeated = RepeatDataset(Rooms(pipeline=pipeline), times=2)
    assert repeated[EpochIndex(1, 0, 0)] != repeated[EpochIndex(6, 0, 0)]


def test_results_that_enter_the_pipeline():
    results = Rooms(pipeline=[], targets=['depth', 'scene'])[-1]
    assert set(results) == {'img', 'gt', 'targets', 'sample_idx', 'img_path', 'ori_shape', 'img_shape'}
    assert list(results['gt']) == list(results['targets']) == ['depth', 'scene']
    assert (results['sample_idx'], results['img_path']) == (4, '4.jpg')
    assert results['ori_shape'] == results['img_shape'] == SIZE
    assert type(Rooms(pipeline=[])[EpochIndex(1, 0, 0)]['sample_idx']) is int


def test_selected_targets_and_metainfo():
    dataset = Rooms(targets=['normal', 'semseg'])
    assert list(dataset.metainfo['targets']) == ['normal', 'semseg']
    assert dataset.metainfo['targets']['semseg']['classes'] == ('wall', 'floor', 'bed')
    assert list(Rooms.METAINFO['targets']) == ['semseg', 'depth', 'normal', 'scene', 'pose']
    with pytest.raises(ValueError, match=r"Rooms: unknown targets \['edges'\], available are \['semseg', 'depth'"):
        Rooms(targets=['edges'])


def test_missing_target_is_unlabelled():
    dataset = Rooms(broken={1: lambda sample: sample['gt'].pop('depth')}, pipeline=PACK)
    assert 'depth' not in dataset[1]['data_samples'].targets
    assert 'depth' in dataset[2]['data_samples'].targets


def test_subset_and_copies():
    assert len(Rooms(indices=2)) == 2
    assert [Rooms(indices=[4, 1])[i]['img_path'] for i in range(2)] == ['4.jpg', '1.jpg']
    assert copy.deepcopy(Rooms(pipeline=PACK))[0]['data_samples'].img_path == '0.jpg'


def replace(name, change):
    def apply(sample):
        sample['gt'][name] = change(sample['gt'][name])

    return apply


def put(name, value):
    def apply(sample):
        sample['gt'][name][2, 3] = value

    return apply


def put_image(value):
    def apply(sample):
        sample['img'][2, 3] = value

    return apply


@pytest.mark.parametrize(
    'breaks, message',
    [
        (
            replace('semseg', lambda a: a[:-1]),
            r"1.jpg: target 'semseg': found \(11, 16\) int64, expected \(12, 16\) int64",
        ),
        (replace('semseg', lambda a: a.astype(np.uint8)), r"'semseg': found \(12, 16\) uint8, expected"),
        (put('semseg', 3), r"'semseg': found labels \[3\], expected 0 to 2, or 255"),
        (put('semseg', -1), r"'semseg': found labels \[-1\]"),
        (replace('depth', lambda a: a[None]), r"1_depth.png: target 'depth': found \(1, 12, 16\)"),
        (replace('depth', lambda a: a.astype(np.float64)), r"'depth': found \(12, 16\) float64, expected .* float32"),
        (put('depth', -1), r"1_depth.png: target 'depth': found values from -1 to"),
        (put('depth', np.nan), "'depth': found values from nan"),
        (put('depth', np.inf), "'depth': found values from .* to inf"),
        (replace('normal', lambda a: a[..., :2].copy()), r"'normal': found \(12, 16, 2\)"),
        (put('normal', np.nan), "'normal': found 1 vectors of a length such as nan"),
        (put('normal', (0.5, 0, 0)), "'normal': found 1 vectors of a length such as 0.5, expected unit length"),
        (replace('scene', lambda a: 2), "'scene': found class 2, expected 0 to 1"),
        (replace('scene', lambda a: 1.0), "'scene': found float, expected an int"),
        (replace('pose', lambda a: a[:1]), r"'pose': found \(1,\) float32, expected \(2,\) float32"),
        (replace('pose', lambda a: a * np.float32(np.inf)), "'pose': found an infinite value"),
        (put_image(1.5), r'1.jpg: image: found values from .* to 1.5'),
        (put_image(np.nan), '1.jpg: image: found values from nan'),
        (lambda sample: sample.update(img=sample['img'][..., 0]), r'1.jpg: image: found \(12, 16\) float32'),
        (lambda sample: sample['gt'].update(edges=0), r"1.jpg: Rooms.load_sample returned targets \['edges'\]"),
    ],
)
def test_broken_samples_are_named_and_not_replaced(breaks, message):
    dataset = Rooms(broken={1: breaks}, pipeline=PACK)
    for index in (1, EpochIndex(1, 0, 0)):
        with pytest.raises(ValueError, match=message):
            dataset[index]
    dataset[0]


def test_void_and_invalid_values_pass_the_check():
    def mark(sample):
        sample['gt']['semseg'][0], sample['gt']['depth'][0], sample['gt']['normal'][0] = 255, 0, 0

    targets = Rooms(broken={1: mark}, pipeline=PACK)[1]['data_samples'].targets
    assert (targets['semseg'][0] == 255).all()
    assert (targets['depth'][:, 0] == 0).all() and (targets['normal'][:, 0] == 0).all()


def test_check_can_be_switched_off():
    assert Rooms(broken={1: put('depth', -1)}, check=False)[1]['gt']['depth'][2, 3] == -1


def test_none_from_the_pipeline_is_an_error():
    with pytest.raises(ValueError, match='1.jpg: the pipeline of Rooms returned None'):
        Rooms(pipeline=[lambda results: None])[1]


@pytest.mark.parametrize(
    'targets, message',
    [
        (dict(a=dict(kind='edges')), "target 'a': kind is 'edges', expected one of segmentation"),
        (dict(a=dict(kind='segmentation')), "target 'a' of kind 'segmentation' must declare its 'classes'"),
        (dict(a=dict(kind='regression')), "must declare its 'names'"),
        (dict(a=dict(kind='segmentation', classes=range(256))), 'at most 255'),
        (dict(a=dict(kind='segmentation', classes='xy', palette=[[0, 0, 0]])), '1 palette colours for 2 classes'),
    ],
)
def test_wrong_declarations_are_named(targets, message):
    with pytest.raises(ValueError, match=message):
        Rooms(metainfo=dict(targets=targets))


@pytest.mark.parametrize('scope', ['mmengine', 'mmseg', 'mmrepmtl'])
def test_transforms_are_found_by_name_under_any_default_scope(scope):
    with DefaultScope.overwrite_default_scope(scope):
        dataset = Rooms(pipeline=[RandomFlip(prob=1.0), dict(type='RandomFlip', prob=1.0), *PACK], test_mode=True)
    assert [type(transform) for transform in dataset.pipeline.transforms[:2]] == [RandomFlip, RandomFlip]
    np.testing.assert_array_equal(dataset[0]['inputs'], Rooms(pipeline=PACK)[0]['inputs'])
