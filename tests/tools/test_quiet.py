"""The screen of a quiet run, in a process of its own: what a person reads, and nothing else."""

import json
import re
import shutil

import pytest

from mmrepmtl.apis import load_config
from tests.tools.harness import ROOT, TINY, python

FEW = ['train_dataloader.dataset.num_samples=16', 'train_cfg.max_epochs=2']


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A quiet training of eight iterations: its folder and its screen."""
    folder = tmp_path_factory.mktemp('quiet')
    result = python('train.py', TINY, '--work-dir', folder, '--quiet', '--cfg-options', *FEW)
    return folder, result


def test_training_says_what_runs_and_how_far_it_is(run):
    folder, result = run
    lines = result.stdout.splitlines()
    facts = dict(re.match(r'(\w+) {2,}(.+)', line).groups() for line in lines if re.match(r'\w+ {2,}', line))
    assert list(facts) == ['model', 'data', 'method', 'device', 'length', 'log']
    assert facts['model'].startswith('test_resnet -> heads semseg, depth, normal; ') and 'M param' in facts['model']
    assert facts['data'] == 'SynthRoomsDataset, 16 training images, 4 in a batch'
    assert facts['method'].startswith('EqualWeighting of log L_t') and any('RepMTL(' in line for line in lines)
    assert facts['device'] == 'cpu, 1 threads' and facts['length'] == '2 epochs, 8 iterations'
    steps = [line for line in lines if line.startswith('training ')]
    assert len(steps) == 8 and all(f'epoch {1 + index // 4}' in step for index, step in enumerate(steps))
    assert re.fullmatch(r'training 3 of 8 \(37 %\), .+ left, epoch 1, losses semseg \S+ depth \S+ normal \S+', steps[2])
    assert steps[-1].startswith('training 8 of 8 (100 %), took ')
    metrics = json.loads((folder / 'metrics.json').read_text())['metrics']
    (last,) = [line for line in lines if line.startswith('validation: ')][1:]
    assert last == (
        f'validation: semseg/mIoU {metrics["semseg/mIoU"]:.4g}, depth/abs_err {metrics["depth/abs_err"]:.4g}, '
        f'normal/mean {metrics["normal/mean"]:.4g}'
    )


def test_the_log_is_in_its_file_and_not_on_the_screen(run):
    folder, result = run
    (file,) = folder.glob('*/*.log')
    assert re.search(r'Epoch\(train\) +\[2\]\[4/4\]', file.read_text()) and 'System environment' in file.read_text()
    assert 'mmengine' not in result.stdout and 'deprecated' not in result.stdout + result.stderr
    assert len(result.stdout.splitlines()) < 30 and str(file.parent) in result.stdout


def test_warnings_and_errors_reach_the_screen(run, tmp_path):
    folder = tmp_path / 'run'
    shutil.copytree(run[0], folder)
    result = python('train.py', TINY, '--work-dir', folder, '--quiet', '--resume', '--cfg-options', *FEW[:1],
                    'train_cfg.max_epochs=3', 'default_hooks.checkpoint=None')  # fmt: skip
    assert '3 epochs, 12 iterations, 8 of them done' in result.stdout
    assert 'training 12 of 12 (100 %)' in result.stdout and 'training 8 of' not in result.stdout
    assert ' - WARNING - ' in result.stdout
    absent = python('train.py', TINY, '--work-dir', folder, '--quiet', '--cfg-options', 'model.encoder.name=nobody',
                    check=False)  # fmt: skip
    assert absent.returncode == 1 and absent.stderr.splitlines()[-1].startswith('train: timm ')


def test_a_quiet_test_shows_progress_and_the_table(run, tmp_path):
    folder, _ = run
    result = python('test.py', TINY, folder / 'epoch_2.pth', '--work-dir', tmp_path, '--quiet')
    lines = result.stdout.splitlines()
    assert any(line.startswith('test 2 of 2 (100 %), took ') for line in lines)
    assert any(line.startswith('best constants, fit 16 of 16 (100 %)') for line in lines)
    assert 'mmengine' not in result.stdout
    table = lines[next(index for index, line in enumerate(lines) if line.startswith('metric ')) :]
    assert table[0].split() == ['metric', 'model', 'best', 'constant', 'better?']
    rows = {line.split()[0]: line.split()[1:] for line in table[1:]}
    metrics = json.loads((tmp_path / 'test_metrics.json').read_text())['metrics']
    assert list(rows) == list(metrics)
    for name, (arrow, value, _, verdict) in rows.items():
        assert arrow in '↑↓' and float(value) == pytest.approx(metrics[name], rel=1e-3) and verdict in ('yes', 'no')


@pytest.mark.slow
def test_the_quickstart_ends_with_the_table_and_the_files(tmp_path):
    code = (
        'import mmrepmtl.apis, mmrepmtl.cli.quickstart as quickstart\n'
        'load = quickstart.load_config\n'
        "options = {'train_dataloader.dataset.num_samples': 16, 'train_cfg.max_epochs': 1,\n"
        "    'train_cfg.val_interval': 1, 'param_scheduler.1.T_max': 1, 'param_scheduler.0.end': 1,\n"
        "    'val_dataloader.dataset.num_samples': 4, 'test_dataloader.dataset.num_samples': 4}\n"
        'quickstart.load_config = lambda *a, **k: load(*a, cfg_options=options, **k)\n'
        f'quickstart.main(["--work-dir", {str(tmp_path)!r}])\n'
    )
    (tmp_path / 'small.py').write_text(code)
    result = python(tmp_path / 'small.py')
    lines = result.stdout.splitlines()
    assert lines[0] == f'1 of 2: training, into {tmp_path}'
    assert sum(line.startswith('2 of 2: test on rooms') for line in lines) == 1 and 'mmengine' not in result.stdout
    assert any(line.startswith('model ') and 'tf_efficientnet_lite0 (pretrained) -> FPNNeck' in line for line in lines)
    files = lines[lines.index(f'in {tmp_path}:') + 1 :]
    names = [line.split()[0] for line in files]
    assert names[:4] == ['predictions.png', 'metrics.json', 'epoch_1.pth', 'quickstart.py'] and len(names) == 6
    assert all((tmp_path / name).is_file() for name in names)


def test_the_quickstart_starts_from_the_weights_of_the_package():
    cfg = load_config(ROOT / 'configs/synth_rooms/quickstart.py')
    assert cfg.model.encoder.pretrained == 'package'
    preprocessor = cfg.model.data_preprocessor  # the images of those weights
    assert tuple(preprocessor.mean) == tuple(preprocessor.std) == (0.5, 0.5, 0.5)
