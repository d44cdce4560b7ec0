import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from mmengine.config import Config

from mmrepmtl.apis import load_config
from mmrepmtl.datasets import MultiTaskFolderDataset
from mmrepmtl.inspection.dataset_check import check_dataset, official_count
from mmrepmtl.inspection.sample_facts import inspect_sample, look_at_target
from mmrepmtl.registry import DATASETS
from tests.datasets.office_files import write_office31
from tests.datasets.own_files import SIZE, write
from tests.tools.own_config import TRAIN, VAL, make_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(tmp_path):
    return make_config(tmp_path)


def check(config, **kwargs):
    return check_dataset(Config(config), **kwargs)


def test_all_is_well(config, tmp_path, capsys):
    assert check(config) == []
    out = capsys.readouterr().out
    assert 'no defects' in out and 'test: the same data set as val' in out
    assert 'train: MultiTaskFolderDataset, 5 samples, 0 with defects' in out
    assert 'val: MultiTaskFolderDataset, 2 samples, 0 with defects' in out
    assert 'stored as 16x20 (5); fed as 16x20 (5)' in out
    assert 'train: 2 iterations per epoch on one process' in out
    # The numbers that the summary shows, from the files.
    masks = np.stack([cv2.imread(str(tmp_path / f'masks/{name}.png'), -1) for name in TRAIN])
    void = 100 * (masks == 255).mean()
    shares = [100 * (masks == number).sum() / (masks != 255).sum() for number in range(3)]
    assert f'semseg (segmentation): 5 of 5 samples labelled, {void:.2f} % of their pixels void' in out
    assert f'wall {shares[0]:.2f} %, floor {shares[1]:.2f} %, bed {shares[2]:.2f} %' in out
    depth = np.stack([cv2.imread(str(tmp_path / f'depth/{name}.png'), -1) for name in TRAIN])
    assert f'{depth[depth > 0].min() / 1000:.4g} to {depth.max() / 1000:.4g} m' in out
    assert 'scene (classification): 5 of 5 samples labelled\n    office 3, kitchen 2' in out
    assert 'pose (regression): 5 of 5 samples labelled, 0.00 % of their numbers void\n    x 0 to 4, y -2 to 0' in out
    edges = np.stack([cv2.imread(str(tmp_path / f'edges/{name}_edge.png'), -1) for name in TRAIN])
    assert f'no {100 * (edges == 0).mean():.2f} %, yes {100 * (edges == 255).mean():.2f} %' in out


def test_every_defect_of_the_files_is_a_line_that_names_it(config, tmp_path, capsys):
    write(tmp_path / 'masks/a/2.png', np.full(SIZE, 7, np.uint8))
    write(tmp_path / 'depth/b/1.png', np.ones((8, 8), np.uint16))
    (tmp_path / 'scene/b/2.txt').write_text('cellar')
    (tmp_path / 'images/c/1.png').write_bytes(b'')
    defects = check(config)
    assert len(defects) == 4
    for expected in (
        f'train: {tmp_path}/masks/a/2.png: found the label ids [7], expected 0 to 2, or 255 (void)',
        f"train: {tmp_path}/depth/b/1.png: target 'depth': found (8, 8) float32, expected (16, 20) float32",
        f"train: {tmp_path}/scene/b/2.txt: found 'cellar', expected one of the 2 classes office, kitchen",
        f'val: {tmp_path}/images/c/1.png: cannot be read as an image',
    ):
        assert any(defect.startswith(expected) for defect in defects), expected
    out = capsys.readouterr().out
    assert [f'defect: {defect}' in out for defect in defects] == [True] * 4
    assert '5 samples, 3 with defects' in out and '4 defects' in out


def test_it_stops_after_max_errors_and_looks_at_one_split(config, tmp_path, capsys):
    for name in TRAIN + VAL:
        write(tmp_path / f'masks/{name}.png', np.full(SIZE, 7, np.uint8))
    assert len(check(config, max_errors=2, splits=['train'])) == 2
    assert 'left after 2 defects, 3 samples have not been looked at' in capsys.readouterr().out


def test_workers_find_the_same(config, tmp_path):
    write(tmp_path / 'masks/a/2.png', np.full(SIZE, 7, np.uint8))
    write(tmp_path / 'masks/b/2.png', np.full(SIZE, 8, np.uint8))
    assert check(config, workers=2) == check(config) and len(check(config, workers=2)) == 2


def test_missing_files_are_a_defect_and_the_other_split_is_read(config, tmp_path, capsys):
    (tmp_path / 'masks/c/1.png').unlink()
    (defect,) = [line for line in dict.fromkeys(d.partition(': ')[2] for d in check(config))]
    assert '1 of 2 files are missing in' in defect and 'the first is c/1.png' in defect
    assert 'train: MultiTaskFolderDataset, 5 samples, 0 with defects' in capsys.readouterr().out


def test_the_files_count_and_not_the_cache(config, tmp_path):
    config['train_dataloader']['dataset']['cache_dir'] = str(tmp_path / 'cache')
    dataset = DATASETS.build(config['train_dataloader']['dataset'])
    dataset.load(1)
    path = tmp_path / 'masks/a/2.png'
    before = os.stat(path)
    write(path, np.full(SIZE, 7, np.uint8))
    path.write_bytes(path.read_bytes().ljust(before.st_size, b'\0'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    # The cache cannot notice this change.
    dataset.load(1)
    assert f'{path}: found the label ids [7]' in check(config, splits=['train'])[0]


def test_the_pipeline_is_run(config):
    config['train_dataloader']['dataset']['pipeline'].insert(0, dict(type='PadMultiTask', size=(10, 10)))
    defects = check(config)
    assert len(defects) == 5 and 'image of (16, 20) cannot be padded to (10, 10)' in defects[0]


def test_a_target_that_loses_its_image_is_found_in_training_only(config):
    class ResizeImageOnly:
        def __call__(self, results):
            results['img'] = cv2.resize(results['img'], (10, 8))
            return results

    datasets = [DATASETS.build(config[f'{split}_dataloader']['dataset']) for split in ('train', 'val')]
    for dataset in datasets:
        dataset.pipeline.transforms.insert(-1, ResizeImageOnly())
    defect = inspect_sample(datasets[0], 0, 0, training=True).defect
    assert 'a/1.png: after the pipeline: target ' in defect and 'its image (8, 10)' in defect
    assert inspect_sample(datasets[1], 0, 0, training=False).defect is None


def change_head(**changes):
    def apply(config):
        task, head = next(iter(changes.items()))
        config['model']['heads'][task] = dict(config['model']['heads'].get(task, {}), **head)

    return apply


def change_metric(number, **changes):
    def apply(config):
        config['val_evaluator'][number] = config['test_evaluator'][number] = dict(
            config['val_evaluator'][number], **changes
        )

    return apply


def set_loader(split, **changes):
    def apply(config):
        config[f'{split}_dataloader'].update(changes)

    return apply


def set_dataset(loader, **changes):
    def apply(config):
        dataset = dict(config[f'{loader}_dataloader']['dataset'], **changes)
        config[f'{loader}_dataloader'] = dict(config[f'{loader}_dataloader'], dataset=dataset)

    return apply


@pytest.mark.parametrize(
    'change, expected',
    [
        (
            change_head(depth=dict(target='distance')),
            "head 'depth': the training data has no target 'distance', only 'semseg', 'edge', 'depth', 'normal', "
            "'scene', 'pose', so the task would train as never labelled; set target=... in the head",
        ),
        (
            change_head(depth=dict(target='normal')),
            "head 'depth': DepthHead learns targets of kind 'depth', but 'normal' of the training data is of kind "
            "'normals'",
        ),
        (change_head(semseg=dict(num_classes=4)), "head 'semseg': num_classes=4, but 'semseg' of the training data"),
        (change_head(scene=dict(num_classes=31)), "head 'scene': num_classes=31, but 'scene' of the training data has"),
        (change_head(pose=dict(num_values=1)), "head 'pose': num_values=1, but 'pose' of the training data has 2"),
        (
            change_metric(2, task='deph'),
            "val: DepthMetric of 'deph': the model has no such task, only 'semseg', 'edges', 'depth'",
        ),
        (
            change_metric(1, target=None),
            "val: SaliencyMetric of 'edges': the data set has no target 'edges', only 'semseg', 'edge', 'depth'",
        ),
        (
            change_metric(2, type='NormalMetric'),
            "val: NormalMetric of 'depth': it evaluates targets of kind 'normals', but 'depth' is of kind 'depth'",
        ),
        (change_metric(0, num_classes=13), "val: SegmentationMetric of 'semseg': num_classes=13, but 'semseg' has 3"),
        (set_loader('train', batch_size=6), 'train: 5 samples are fewer than a batch of 6, and drop_last'),
        (set_loader('val', drop_last=True), 'val: drop_last leaves samples out of the metrics'),
        (set_loader('train', sampler=dict(type='EpochSampler', speed=1)), 'train: the loader cannot be built: '),
        (set_dataset('val', split='train', test_mode=True), 'val: 5 of its images are in the training data, such as '),
        (set_dataset('train', indices=[]), 'train: '),
    ],
)  # fmt: skip
def test_what_lies_between_configs(config, change, expected):
    change(config)
    defects = check(config)
    assert any(defect.startswith(expected) for defect in defects), defects


@pytest.mark.parametrize(
    'name, changes, expected',
    [
        ('scene', dict(classes=['kitchen', 'office']), "classes of the target 'scene': ['kitchen', 'office'] here, ["),
        ('depth', dict(inverse=True), "inverse of the target 'depth': True here, None for training"),
        ('pose', dict(names=['y', 'x']), "names of the target 'pose': ['y', 'x'] here, ['x', 'y'] for training"),
    ],
)
def test_targets_that_mean_something_else_in_another_split(config, name, changes, expected):
    labels = config['val_dataloader']['dataset']['labels']
    set_dataset('val', labels=labels | {name: labels[name] | changes})(config)
    (defect,) = check(config)
    assert defect.startswith(f'val: {expected}')


def test_a_target_that_nothing_labels_is_a_defect_of_the_training_set_only(config, tmp_path, capsys):
    for split in ('train', 'val', 'test'):
        set_dataset(split, allow_unlabelled=True)(config)
    for name in VAL:
        (tmp_path / f'depth/{name}.png').unlink()
    assert check(config) == []
    assert "note: val: no sample has the target 'depth', so its metrics will be NaN" in capsys.readouterr().out
    for name in TRAIN:
        write(tmp_path / f'depth/{name}.png', np.zeros(SIZE, np.uint16))
    assert check(config) == ["train: no label of the target 'depth' is valid, so its task would learn nothing"]


def test_notes(config, tmp_path, capsys):
    config['model']['heads'].pop('scene')
    config['val_evaluator'] = config['test_evaluator'] = [
        metric for metric in config['val_evaluator'] if metric['task'] not in ('scene', 'pose')
    ]
    config['train_dataloader'] |= dict(drop_last=False)
    for name in TRAIN:
        write(tmp_path / f'masks/{name}.png', np.zeros(SIZE, np.uint8))
    labels = config['train_dataloader']['dataset']['labels']
    set_dataset('train', labels=labels | dict(depth=labels['depth'] | dict(scale=1)))(config)
    write(tmp_path / 'images/b/1.png', np.zeros((*SIZE, 3), np.uint8))
    assert check(config) == []
    out = capsys.readouterr().out
    for note in (
        "train: no head reads the target 'scene'; leave it out with targets=[...]",
        "val: no metric evaluates the task 'pose'",
        'train: the last batch of an epoch holds one sample, of which BatchNorm after global pooling',
        "train: 2 classes of 'semseg' do not occur: floor, bed",
        "train: 'depth' goes up to 4",
        f'train: 1 images are of one colour, the first is {tmp_path}/images/b/1.png',
    ):
        assert f'note: {note}' in out, note


def test_wrapped_data_sets(config, capsys):
    dataset = config['train_dataloader']['dataset']
    halves = [dict(dataset, indices=[0, 1]), dict(dataset, indices=[2, 3, 4])]
    config['train_dataloader']['dataset'] = dict(
        type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=halves)
    )
    assert check(config) == []
    out = capsys.readouterr().out
    assert 'train: RepeatDataset, 10 samples, 0 with defects' in out and 'semseg (segmentation): 5 of 5' in out
    assert 'train: 5 iterations per epoch' in out


def test_domains(config, capsys):
    def domains(split):
        dataset = dict(config[f'{split}_dataloader']['dataset'], pipeline=[])
        return dict(near=dataset | dict(targets=['depth']), room=dataset | dict(targets=['scene']))

    own = {split: domains(split) for split in ('train', 'val', 'test')}
    for split, datasets in own.items():
        pipeline = [dict(type='PackMultiTaskInputs')]
        dataset = dict(type='MultiDomainDataset', datasets=datasets, pipeline=pipeline, test_mode=split != 'train')
        config[f'{split}_dataloader'] = dict(config[f'{split}_dataloader'], dataset=dataset)
    heads = config['model']['heads']
    config['model']['heads'] = dict(near=heads['depth'], room=heads['scene'])
    config['val_evaluator'] = config['test_evaluator'] = [
        dict(type='DepthMetric', task='near'),
        dict(type='ClassificationMetric', task='room'),
    ]
    batches = dict(batch_sampler=dict(type='DomainBatchSampler', drop_last=True))
    config['train_dataloader'] = {k: v for k, v in config['train_dataloader'].items() if k != 'drop_last'} | batches
    assert check(config) == []
    out = capsys.readouterr().out
    assert 'MultiDomainDataset, 10 samples' in out and 'near (depth): 5 of 10 samples labelled' in out
    config['train_dataloader']['batch_size'] = 6
    assert "the domain 'near' has 5 samples, fewer than one batch of 6" in check(config, splits=['train'])[0]


def test_official_counts(config, monkeypatch, capsys):
    monkeypatch.setattr(MultiTaskFolderDataset, 'OFFICIAL_COUNTS', dict(train=5, val=3), raising=False)
    assert check(config) == [
        f'{split}: MultiTaskFolderDataset has 2 samples, officially there are 3' for split in ['val']
    ]
    capsys.readouterr()
    assert check(config, allow_partial=True) == []
    assert 'note: val: MultiTaskFolderDataset has 2 samples, officially' in capsys.readouterr().out

    class Cut:
        OFFICIAL_COUNTS = dict(amazon=dict(train=7), dslr=(8, 3, 4))
        split, domain, _indices = 'test', 'dslr', None

    assert official_count(Cut()) == 4
    Cut.split, Cut.domain = 'train', 'amazon'
    assert official_count(Cut()) == 7
    Cut._indices = 3
    assert official_count(Cut()) is None and official_count(object()) is None


def test_official_counts_of_the_benchmarks():
    expected = dict(
        NYUv2Dataset=dict(train=795, val=654, test=654),
        CityscapesDataset=dict(train=2975, val=500, test=500),
        PASCALContextDataset=dict(train=4998, val=5105, test=5105),
        GTA5Dataset=dict(all=24966, train=12403, val=6382, test=6181),
    )
    for name, counts in expected.items():
        for split, count in counts.items():
            dataset = SimpleNamespace(OFFICIAL_COUNTS=DATASETS.get(name).OFFICIAL_COUNTS, split=split)
            assert official_count(dataset) == count


def test_a_part_of_a_benchmark_is_a_defect_that_names_its_domain(tmp_path):
    write_office31(tmp_path)
    path = ROOT / 'configs/office31/rep-mtl_resnet18-per-task_b32-5e_office31-64.py'
    cfg = load_config(path, data_root=str(tmp_path), cfg_options={'train_dataloader.batch_size': 2})
    defects = check_dataset(cfg, splits=['train'])
    assert "train: Office31Dataset of 'dslr' has 5 samples, officially there are 287" in defects and len(defects) == 3
    assert check_dataset(cfg, splits=['train'], allow_partial=True) == []


@pytest.mark.parametrize(
    'kind, value, expected',
    [
        ('segmentation', np.array([[0, 255], [2, 2]]), (3, 4, {0: 1, 2: 2})),
        ('binary', np.array([[0, 255], [1, 1]]), (3, 4, {0: 1, 1: 2})),
        ('depth', np.array([[0, 2.0], [1, 3]], np.float32), (3, 4, {})),
        ('normals', np.array([[[0, 0, 0], [0, 0, 1]]], np.float32), (1, 2, {})),
        ('classification', 4, (1, 1, {4: 1})),
        ('regression', np.array([np.nan, 2], np.float32), (1, 2, {})),
    ],
)
def test_facts_by_kind(kind, value, expected):
    facts = look_at_target(value, kind)
    assert (facts.valid, facts.total, dict(facts.counts)) == expected and facts.samples == 1
    if kind == 'depth':
        assert (facts.low[0], facts.high[0]) == (1, 3)


@pytest.mark.slow
def test_the_command(config, tmp_path):
    file = tmp_path / 'own.py'
    file.write_text('\n'.join(f'{key} = {value!r}' for key, value in config.items()))
    command = [sys.executable, str(ROOT / 'tools/misc/check_dataset.py'), str(file), '--workers', '1']
    environment = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    good = subprocess.run([*command, '--split', 'val'], capture_output=True, text=True, env=environment)
    assert good.returncode == 0 and 'no defects' in good.stdout, good.stderr
    assert '2 of 2 samples in' in good.stderr
    write(tmp_path / 'masks/a/2.png', np.full(SIZE, 7, np.uint8))
    bad = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert bad.returncode == 1 and f'defect: train: {tmp_path}/masks/a/2.png: found the label ids' in bad.stdout
    assert json.dumps(bad.stderr).count('Traceback') == 0
