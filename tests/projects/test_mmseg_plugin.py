"""Stock mmseg projects under the optim wrapper: mmseg's segmentors, configs and tools, unchanged."""

import copy
import itertools
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

pytest.importorskip('mmseg', reason='mmseg is not installed')

import mmseg

from tests.engine.overlays import ready

ROOT = Path(__file__).resolve().parents[2]
PROJECT = ROOT / 'projects' / 'mmseg_plugin'
SHIPPED = Path(mmseg.__file__).parent / '.mim'
SEGMENTORS = ('encoder_decoder', 'depth_estimator', 'two_heads')
#: One of each kind: overlay, and what it is about.
METHODS = {
    'ew': 'equal weighting',
    'rlw': 'loss weighting',
    'uw': 'learned weighting',
    'famo': 'second look',
    'pcgrad': 'Gramian aggregator, at the parameters',
    'mgda': 'Gramian aggregator, at Z',
    'db-mtl': 'full gradients',
    'mtadam': 'replaces the optimizer',
    'rep-mtl': 'Rep-MTL',
}
NO_WORKERS = dict(num_workers=0, persistent_workers=False)
_numbers = itertools.count()


@pytest.fixture(scope='module')
def rooms(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'rooms'
    arguments = [str(folder), '--size', '32', '64', '--train', '12', '--val', '4']
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', ['make_data.py', *arguments])
        runpy.run_path(str(PROJECT / 'make_data.py'), run_name='__main__')
    return folder


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """mmengine's Runner sets the default scope of the process; the project's module lies beside its train.py."""
    monkeypatch.syspath_prepend(str(PROJECT))
    before = copy.copy(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict = before


def small(cfg: Config, rooms: Path, work_dir: Path, iters: int = 3) -> Config:
    """The same run on a few small images, in this process."""
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(NO_WORKERS, batch_size=4)
        loader.dataset.data_root = str(rooms)
    cfg.model.data_preprocessor.size = (32, 64)
    cfg.train_cfg.max_iters = cfg.train_cfg.val_interval = iters
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint.update(interval=1000, save_last=False)
    cfg.work_dir, cfg.experiment_name = str(work_dir), f'mmseg_plugin_{next(_numbers)}'
    return cfg


def config_of(segmentor: str, method: str, rooms, work_dir, **settings) -> Config:
    cfg = small(Config.fromfile(PROJECT / 'configs' / f'{segmentor}_rep-mtl.py'), rooms, work_dir)
    kept = {key: cfg.optim_wrapper[key] for key in ('type', 'optimizer', 'shared', 'tasks')}
    cfg.optim_wrapper = kept | ready(method) | dict(diagnostics_interval=1) | settings
    cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
    return cfg


def train(cfg: Config) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Weights after the run, and the last entry of its log."""
    runner = Runner.from_cfg(cfg)
    runner.train()
    scalars = runner.message_hub.log_scalars
    log = {key.removeprefix('train/'): float(value.current()) for key, value in scalars.items() if 'train/' in key}
    return runner.model.state_dict(), log


@pytest.fixture(scope='module')
def plain(rooms, tmp_path_factory):
    """The weights that equal weighting leads to, for each segmentor."""
    weights = {}

    def of(segmentor):
        if segmentor not in weights:
            weights[segmentor] = train(config_of(segmentor, 'ew', rooms, tmp_path_factory.mktemp('ew')))[0]
        return weights[segmentor]

    return of


@pytest.mark.slow
@pytest.mark.parametrize('segmentor', SEGMENTORS)
@pytest.mark.parametrize('method', METHODS)
def test_each_kind_of_method_trains_each_segmentor(segmentor, method, rooms, plain, tmp_path):
    """Three steps; both tasks are logged under their names, and the method does something else than the plain sum."""
    settings = {}
    if method == 'mgda':  # nothing may pass Z by, which the lower levels would with the depth estimator's own choice
        settings['aggregator'] = dict(type='MGDA', level='representation')
        settings['shared'] = 'backbone' if segmentor == 'depth_estimator' else 'backbone.layer3'
    cfg = config_of(segmentor, method, rooms, tmp_path, **settings)
    tasks = list(cfg.optim_wrapper.tasks)
    weights, log = train(cfg)
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert {f'{kind}/{task}' for kind in ('raw', 'weight') for task in tasks} <= set(log)
    assert all(log[f'raw/{task}'] > 0 for task in tasks)
    different = {key for key, value in weights.items() if not torch.equal(value, plain(segmentor)[key])}
    assert any(key.startswith('backbone.layer1') for key in different) == (method != 'ew')
    if method == 'rep-mtl':
        # Both tasks are seen at Z: entropy is neither that of one owner nor nothing.
        assert {'rep_mtl/tsr', 'rep_mtl/csa', 'rep_mtl/grad_ratio'} <= set(log) and 0.1 < log['rep_mtl/entropy'] < 1
        assert sum(log[f'rep_mtl/share/{task}'] for task in tasks) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize('segmentor', SEGMENTORS)
def test_rep_mtl_joins_a_gradient_method(segmentor, rooms, tmp_path):
    regularizer = dict(type='RepMTL', lambda_tsr=0.1, lambda_csa=0.9)
    weights, log = train(config_of(segmentor, 'pcgrad', rooms, tmp_path, regularizers=[regularizer]))
    assert all(torch.isfinite(value).all() for value in weights.values()) and log['rep_mtl/tsr'] > 0


def test_what_passes_z_by_is_refused_at_the_representation(rooms, tmp_path):
    """VPDDepthHead reads all levels: of the gradients at layer3 alone a part would be lost."""
    aggregator = dict(type='MGDA', level='representation')
    cfg = config_of('depth_estimator', 'mgda', rooms, tmp_path, aggregator=aggregator)
    with pytest.raises(RuntimeError, match="task 'depth' reads the encoder past the shared representation"):
        train(cfg)


@pytest.mark.parametrize('segmentor', SEGMENTORS)
def test_the_configs_differ_by_the_optim_wrapper_alone(segmentor):
    mine, theirs = (Config.fromfile(PROJECT / 'configs' / f'{segmentor}{end}.py') for end in ('_rep-mtl', ''))
    differing = {key for key in {*mine, *theirs} if mine.get(key) != theirs.get(key)}
    assert differing == {'custom_imports', 'optim_wrapper', 'custom_hooks'}
    assert (
        theirs.optim_wrapper.type == 'OptimWrapper' and mine.optim_wrapper.optimizer == theirs.optim_wrapper.optimizer
    )


@pytest.mark.slow
@pytest.mark.skipif(not (SHIPPED / 'configs').is_dir(), reason='this mmseg was installed without its configs')
def test_the_config_that_mmseg_ships_trains_with_rep_mtl(rooms, tmp_path):
    """Its FCN on a dilated ResNet-50: BN for SyncBN and no download, as on any CPU; its schedule and runtime."""
    base = [
        str(SHIPPED / 'configs/_base_' / name)
        for name in ('models/fcn_r50-d8.py', 'schedules/schedule_20k.py', 'default_runtime.py')
    ]
    data = Config.fromfile(PROJECT / 'configs/_base_/rooms.py')
    keys = ('train_dataloader', 'val_dataloader', 'test_dataloader', 'val_evaluator', 'test_evaluator')
    (tmp_path / 'config.py').write_text(
        f"""
_base_ = {base!r}
custom_imports = dict(imports=['mmrepmtl', 'two_heads'])
norm = dict(type='BN', requires_grad=True)
model = dict(pretrained=None, data_preprocessor=dict(size=(32, 64)), backbone=dict(norm_cfg=norm),
             decode_head=dict(num_classes=11, norm_cfg=norm), auxiliary_head=dict(num_classes=11, norm_cfg=norm))
optim_wrapper = dict(
    _delete_=True, type='MultiTaskOptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9),
    shared='backbone.layer3', tasks=dict(semseg='decode.', auxiliary='aux.'), loss_transform='log',
    regularizers=[dict(type='RepMTL')])
"""
        + '\n'.join(f'{key} = {data[key]!r}' for key in keys)
    )
    cfg = small(Config.fromfile(tmp_path / 'config.py'), rooms, tmp_path, iters=2)
    cfg.env_cfg.dist_cfg = dict(backend='gloo')
    runner = Runner.from_cfg(cfg)
    runner.train()
    log = runner.message_hub.log_scalars
    assert log['train/rep_mtl/tsr'].current() > 0 and 'val/semseg/mIoU' in log


def call(tool, config, rooms, work_dir, *more, patch=None) -> str:
    """The log of the tool, in a process of its own with the workers of the config; with ``patch`` in this process."""
    parts = [f'{part}_dataloader' for part in ('train', 'val', 'test')]
    options = {f'{part}.dataset.data_root': rooms for part in parts}
    options |= {'train_cfg.max_iters': 4, 'train_cfg.val_interval': 4, 'default_hooks.logger.interval': 1}
    options |= {'model.data_preprocessor.size': '32,64', 'train_dataloader.batch_size': 4}
    if patch is not None:
        options |= {f'{part}.{key}': value for part in parts for key, value in NO_WORKERS.items()}
        options['experiment_name'] = f'mmseg_plugin_{next(_numbers)}'
    command = [tool, PROJECT / 'configs' / config, '--work-dir', work_dir, '--cfg-options']
    command = [str(part) for part in command] + [f'{key}={value}' for key, value in options.items()] + list(more)
    if patch is not None:
        patch.setattr(sys, 'argv', command)
        patch.setenv('LOCAL_RANK', '0')  # the tool sets it
        runpy.run_path(command[0], run_name='__main__')
        (log,) = work_dir.glob('*/*.log')
        return log.read_text()
    environment = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=f'{ROOT}{os.pathsep}{PROJECT}')
    result = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout + result.stderr


TOOLS = [
    ('two_heads_rep-mtl.py', PROJECT / 'train.py', 'own process'),
    ('depth_estimator_rep-mtl.py', PROJECT / 'train.py', 'this process'),
    ('encoder_decoder_rep-mtl.py', PROJECT / 'train.py', 'this process'),
    ('two_heads.py', PROJECT / 'train.py', 'this process'),
    ('two_heads_rep-mtl.py', SHIPPED / 'tools' / 'train.py', 'own process'),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ('config', 'tool', 'process'), TOOLS, ids=[f'{tool.parts[-2]}-{config}' for config, tool, _ in TOOLS]
)
def test_the_project_runs_as_its_readme_says(config, tool, process, rooms, tmp_path, monkeypatch):
    """The last one under the very tools/train.py that mmseg installs."""
    if not tool.is_file():
        pytest.skip('this mmseg was installed without its tools')
    log = call(tool, config, rooms, tmp_path, patch=monkeypatch if process == 'this process' else None)
    steps = re.findall(r'Iter\(train\) \[(\d)/4\].*', log)
    assert steps == list('1234')
    assert ('rep_mtl/entropy' in log) == ('rep-mtl' in config)
    metric = 'depth/rmse' if config.startswith(('two', 'depth')) else 'semseg/mIoU'
    assert re.search(rf'Iter\(val\).*{metric}: \d', log)
    assert (tmp_path / 'last_checkpoint').is_file()


@pytest.mark.slow
@pytest.mark.parametrize('line', re.findall(r'--cfg-options (.*)', (PROJECT / 'README.md').read_text()))
def test_the_readme_changes_the_method(line, rooms, tmp_path, monkeypatch):
    log = call(PROJECT / 'train.py', 'two_heads_rep-mtl.py', rooms, tmp_path, *shlex.split(line), patch=monkeypatch)
    method = re.search(r'MultiTaskOptimWrapper: (.*)', log)[1]
    assert ('DBMTL' in method) == ('DBMTL' in line) and ('RepMTL' in method) == ('regularizers' not in line)
    assert ('UncertaintyWeighting' in method) == ('UncertaintyWeighting' in line) and 'log L_t' not in method
