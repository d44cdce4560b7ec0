"""The configs of the benchmarks whose tasks have samples of their own, on a few images."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from scipy.io import savemat

from mmrepmtl.apis import load_config, train
from mmrepmtl.apis.train import single_task_config
from mmrepmtl.registry import DATASETS, MODELS
from tests.datasets.office_files import OFFICE31, write_office31
from tests.datasets.street_files import write_archive, write_gta5

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(
    path for folder in ('office31', 'office_home', 'gta5_cityscapes') for path in (ROOT / 'configs' / folder).glob('*')
)

needs_data = pytest.mark.skipif(
    'MMREPMTL_DATA' not in os.environ, reason='needs Office-31: set MMREPMTL_DATA to the folder above office31'
)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_configs_load_with_overlays(path):
    for method in (None, 'ew', 'rep-mtl', 'stl'):
        cfg = load_config(path, method)
        tasks = list(cfg.train_dataloader.dataset.datasets)
        assert list(cfg.model.heads) == tasks == [metric.task for metric in cfg.val_evaluator]
        assert cfg.model.encoder_forward == ('concat' if 'concat' in path.stem else 'per_task')
        assert tasks == list(cfg.test_dataloader.dataset.datasets)


@pytest.mark.parametrize('name', ['office31', 'office_home'])
def test_the_network_of_the_paper(name):
    (path,) = (ROOT / 'configs' / name).glob('*per-task_b64*')
    cfg = load_config(path)
    model = MODELS.build(cfg.model).eval()
    parameters = {part: sum(p.numel() for p in getattr(model, part).parameters()) for part in ('encoder', 'neck')}
    # ResNet-18 without its classifier; linear 512-512 and BatchNorm.
    assert parameters == dict(encoder=11_176_512, neck=512 * 512 + 512 + 2 * 512)
    classes = 31 if name == 'office31' else 65
    assert {task: tuple(head.decoder.layers[-1].weight.shape) for task, head in model.heads.items()} == dict.fromkeys(
        cfg.model.heads, (classes, 512)
    )
    assert cfg.optim_wrapper.shared == 'neck'
    with torch.no_grad():
        assert model.represent(torch.zeros(2, 3, 64, 64)).shape == (2, 512)


def small(cfg, work_dir, **options):
    """A run of seconds with a config of the repository."""
    for name in ('train', 'val', 'test'):
        cfg[f'{name}_dataloader'].update(batch_size=3, num_workers=0, persistent_workers=False)
    cfg.model.encoder = dict(type='TimmEncoder', name='test_resnet')
    cfg.work_dir, cfg.experiment_name = str(work_dir), str(work_dir).replace('/', '_')
    cfg.merge_from_dict(options)
    return cfg


def office_config(root, work_dir, mode='per-task', method=None, **options):
    (path,) = (ROOT / 'configs/office31').glob(f'*{mode}_b32*')
    cfg = small(load_config(path, method, data_root=str(root)), work_dir, **options)
    for name in ('train', 'val', 'test'):
        cfg[f'{name}_dataloader'].dataset.pipeline[0].size = (24, 24)
    return cfg


@pytest.fixture(scope='module')
def office31(tmp_path_factory):
    root = tmp_path_factory.mktemp('office31')
    write_office31(root)
    return root


def weights(work_dir, epoch):
    return torch.load(Path(work_dir, f'epoch_{epoch}.pth'), weights_only=False)['state_dict']


def run_office31(root, work_dir, epochs, resume=False):
    cfg = office_config(root, work_dir, **{'train_cfg.max_epochs': epochs, 'resume': resume})
    # Its end is the last epoch, which differs here.
    cfg.param_scheduler = []
    cfg.experiment_name += f'_{epochs}'
    return train(cfg)


@pytest.mark.slow
def test_a_resumed_run_is_the_same_run(office31, tmp_path):
    run_office31(office31, tmp_path / 'whole', 2)
    run_office31(office31, tmp_path / 'parts', 1)
    run_office31(office31, tmp_path / 'parts', 2, resume=True)
    one, other = weights(tmp_path / 'whole', 2), weights(tmp_path / 'parts', 2)
    assert all(torch.equal(one[key], other[key]) for key in one)
    # And the second epoch did something.
    assert not torch.equal(one['neck.layers.0.weight'], weights(tmp_path / 'whole', 1)['neck.layers.0.weight'])


def test_concatenated_domains_train_with_rep_mtl(office31, tmp_path):
    cfg = office_config(office31, tmp_path, 'concat', **{'train_cfg.max_epochs': 1})
    metrics = train(cfg)
    assert metrics['avg/top1'] == pytest.approx(sum(metrics[f'{task}/top1'] for task in OFFICE31) / 3)


def test_a_domain_trains_alone(office31, tmp_path):
    cfg = office_config(office31, tmp_path, method='stl', **{'train_cfg.max_epochs': 1})
    alone = single_task_config(cfg, 'webcam')
    metrics = train(alone)
    assert set(metrics) == {'webcam/top1'} and 0 <= metrics['webcam/top1'] <= 100
    assert {key.split('.')[1] for key in weights(tmp_path / 'webcam', 1) if key.startswith('heads')} == {'webcam'}


def test_gta5_and_cityscapes_train(tmp_path):
    names = [f'{number:05d}' for number in range(1, 10)]
    write_gta5(tmp_path / 'gta5', names)
    savemat(tmp_path / 'gta5/split.mat', dict(trainIds=np.arange(1, 6), valIds=np.array([6]), testIds=np.arange(7, 10)))
    write_archive(tmp_path / 'cityscapes')
    (path,) = (ROOT / 'configs/gta5_cityscapes').glob('*resnet18*')
    cfg = small(load_config(path, data_root=str(tmp_path)), tmp_path / 'run', **{'train_cfg.max_epochs': 1})
    metrics = train(cfg)
    assert metrics['avg/mIoU'] == pytest.approx((metrics['gta5/mIoU'] + metrics['cityscapes/mIoU']) / 2)


@needs_data
@pytest.mark.realdata
def test_real_office31_has_the_iterations_of_the_paper():
    (path,) = (ROOT / 'configs/office31').glob('*per-task_b64*')
    cfg = load_config(path)
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    built = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    assert len(built) == 26
    dataset = built.dataset
    for task, rows in dataset.domains.items():
        for index in (rows.start, rows.stop - 1):
            sample = dataset[index]['data_samples']
            assert list(sample.targets) == [task] and f'/{task}/' in sample.img_path
            classes = dataset.targets[task]['classes']
            assert f'/{classes[int(sample.targets[task])]}/' in sample.img_path
    assert DATASETS.build(cfg.val_dataloader.dataset).test_mode
