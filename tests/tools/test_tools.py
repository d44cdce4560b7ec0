"""The command line, run as a user runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
import torch

from mmrepmtl.apis import available_methods, load_config
from mmrepmtl.evaluation import delta_p_task, load_results
from mmrepmtl.utils.checkpoint import load_checkpoint
from tests.tools.harness import ROOT, TINY, call, python

CONFIGS = sorted(path for folder in ('nyuv2', 'synth_rooms') for path in (ROOT / 'configs' / folder).glob('*.py'))


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """One run of tools/train.py with Rep-MTL."""
    work_dir = tmp_path_factory.mktemp('run')
    result = python('train.py', TINY, '--work-dir', work_dir, '--seed', 5)
    return work_dir, result.stdout + result.stderr


def test_train_logs_the_method_and_writes_metrics(trained):
    work_dir, log = trained
    assert 'EqualWeighting of log L_t over tasks' in log and 'RepMTL(lambda_tsr=0.9, lambda_csa=0.9, temp' in log
    for name in ('raw/semseg', 'weight/depth', 'rep_mtl/tsr', 'rep_mtl/csa', 'rep_mtl/entropy', 'rep_mtl/grad_ratio'):
        assert name in log
    assert 'Failed to search registry' not in log and 'Falling back to weights_only=False' not in log
    metrics, meta = load_results(work_dir / 'metrics.json')
    assert {'semseg/mIoU', 'depth/abs_err', 'normal/mean'} <= set(metrics)
    assert (meta['epoch'], meta['seed'], meta['world_size']) == (2, 5, 1) and 'log L_t' in meta['objective']


@pytest.mark.slow
def test_single_tasks_then_test_with_delta_p_and_pictures(trained, tmp_path):
    work_dir, _ = trained
    stl_run = ('train.py', TINY, '--method', 'stl', '--work-dir', tmp_path / 'stl')
    python(*stl_run)
    stl, meta = load_results(tmp_path / 'stl/stl.json')
    assert meta['method'] == 'stl' and set(stl) == set(load_results(work_dir / 'metrics.json')[0])
    assert '"split": "test"' in meta['test_data']
    python(*stl_run, '--resume')
    assert load_results(tmp_path / 'stl/stl.json') == (stl, meta)
    alone = load_checkpoint(tmp_path / 'stl/depth/epoch_2.pth')['state_dict']
    assert {key.split('.')[1] for key in alone if key.startswith('heads.')} == {'depth'}

    result = python(
        'test.py',
        TINY,
        work_dir / 'epoch_2.pth',
        '--stl',
        tmp_path / 'stl/stl.json',
        '--show-dir',
        tmp_path / 'show',
        '--work-dir',
        tmp_path / 'test',
    )
    metrics, meta = load_results(tmp_path / 'test/test_metrics.json')
    assert f'delta_p_task (ARI): {delta_p_task(metrics, stl):+.2f} %' in result.stdout
    assert 'best constant' in result.stdout and set(meta['constant']) == set(metrics)
    other = python(
        'test.py',
        TINY,
        work_dir / 'epoch_2.pth',
        '--stl',
        tmp_path / 'stl/stl.json',
        '--work-dir',
        tmp_path / 'val',
        '--cfg-options',
        'test_dataloader.dataset.split=val',
        check=False,
    )
    assert other.returncode and 'stl.json was measured on another test set' in other.stderr
    picture = cv2.imread(str(tmp_path / 'show/predictions.png'))
    assert picture.shape[0] > 200 and picture.std() > 20


def kill_after(path: Path, process: subprocess.Popen) -> None:
    """SIGKILLs the process once the file is there."""
    for _ in range(1200):
        if path.exists() or process.poll() is not None:
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(trained, tmp_path):
    whole, _ = trained
    arguments = [sys.executable, ROOT / 'tools/train.py', TINY, '--work-dir', tmp_path, '--seed', '5']
    environment = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT))
    process = subprocess.Popen(
        arguments, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    kill_after(tmp_path / 'last_checkpoint', process)
    assert (tmp_path / 'epoch_1.pth').exists() and not (tmp_path / 'epoch_2.pth').exists()
    result = python('train.py', TINY, '--work-dir', tmp_path, '--seed', 5, '--resume')
    assert 'resumed epoch: 1' in result.stdout + result.stderr
    a, b = (load_checkpoint(folder / 'epoch_2.pth')['state_dict'] for folder in (whole, tmp_path))
    assert [key for key in a if not torch.equal(a[key], b[key])] == []
    assert load_results(whole / 'metrics.json')[0] == load_results(tmp_path / 'metrics.json')[0]


@pytest.mark.slow
def test_two_processes_end_with_the_same_metrics(tmp_path):
    result = call('bash', ROOT / 'tools/dist_train.sh', TINY, 2, '--work-dir', tmp_path, env=dict(PORT='29517'))
    assert 'all 2 ranks computed the same metrics' in result.stdout + result.stderr
    metrics, meta = load_results(tmp_path / 'metrics.json')
    assert meta['world_size'] == 2 and metrics['depth/abs_err'] > 0
    assert len(load_checkpoint(tmp_path / 'epoch_2.pth')['random_states']) == 2
    refused = python('train.py', TINY, '--work-dir', tmp_path, '--resume', check=False)
    assert refused.returncode and 'number of processes: 2 in the checkpoint, 1 now' in refused.stderr
    single = python('test.py', TINY, tmp_path / 'epoch_2.pth', '--work-dir', tmp_path / 'single', '--no-constant')
    call(
        'bash',
        ROOT / 'tools/dist_test.sh',
        TINY,
        tmp_path / 'epoch_2.pth',
        2,
        '--work-dir',
        tmp_path / 'double',
        '--no-constant',
        env=dict(PORT='29518'),
    )
    one, two = (load_results(tmp_path / name / 'test_metrics.json')[0] for name in ('single', 'double'))
    assert two == pytest.approx(one, rel=1e-6) and 'semseg/mIoU' in single.stdout


def test_a_checkpoint_of_another_model_or_with_code_is_refused(trained, tmp_path):
    checkpoint = load_checkpoint(trained[0] / 'epoch_2.pth')
    checkpoint['state_dict'].pop('heads.depth.decoder.layers.0.weight')
    torch.save(checkpoint, tmp_path / 'other.pth')
    result = python('test.py', TINY, tmp_path / 'other.pth', '--work-dir', tmp_path, check=False)
    assert (
        "other.pth does not fit the model of the config: missing ['heads.depth.decoder.layers.0.weight']"
        in result.stderr
    )


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(method='nash'), r"--method: 'nash' is unknown; there are .*ew, ew-log"),
        (dict(resume='nowhere.pth'), '--resume: there is no checkpoint nowhere.pth'),
        (
            dict(regularizer='pcgrad'),
            "--regularizer: 'pcgrad' is unknown; there are rep-mtl, rep-mtl-csa, rep-mtl-paper, ",
        ),
        (dict(method='rep-mtl', regularizer='rep-mtl'), '--regularizer: the method has RepMTL already'),
        (dict(method='stl', regularizer='rep-mtl'), '--regularizer: a task that is trained alone'),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_config(TINY, **arguments)


def test_a_method_replaces_what_the_config_says_of_it():
    cfg = load_config(TINY, method='pcgrad', precision='bf16', seed=7, cfg_options={'optim_wrapper.optimizer.lr': 0.5})
    assert cfg.optim_wrapper.aggregator.type == 'PCGrad' and cfg.optim_wrapper.regularizers == []
    assert cfg.optim_wrapper.loss_transform is None and cfg.optim_wrapper.shared == 'encoder'
    assert (cfg.optim_wrapper.precision, cfg.randomness.seed, cfg.optim_wrapper.optimizer.lr) == ('bf16', 7, 0.5)
    assert cfg.work_dir == 'work_dirs/tiny_pcgrad'
    assert cfg.optim_wrapper.aggregator.seed == 7
    cfg = load_config(TINY, method='pcgrad', regularizer='rep-mtl')
    assert cfg.optim_wrapper.aggregator.type == 'PCGrad' and cfg.optim_wrapper.regularizers[0].type == 'RepMTL'
    assert cfg.work_dir == 'work_dirs/tiny_pcgrad_with-rep-mtl'
    nyuv2 = next(path for path in CONFIGS if 'nyuv2' in path.name)
    cfg = load_config(nyuv2, data_root='/data')
    assert {cfg[f'{split}_dataloader'].dataset.data_root for split in ('train', 'val', 'test')} == {'/data'}


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_with_every_method(path):
    from mmrepmtl.engine import MultiTaskOptimWrapper
    from mmrepmtl.registry import MODELS, OPTIM_WRAPPERS

    model = MODELS.build(load_config(path).model)
    for method in available_methods(path):
        cfg = dict(load_config(path, method=method).optim_wrapper)
        cfg['optimizer'] = torch.optim.Adam(model.parameters())
        wrapper = OPTIM_WRAPPERS.build(cfg)
        assert isinstance(wrapper, MultiTaskOptimWrapper)
        wrapper.initialize_count_status(model, 0, 10)
        assert list(json.loads(wrapper.state_dict()['multi_task']['signature'])) != []
