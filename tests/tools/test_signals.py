"""Signals to tools/train.py, as a terminal, a cluster and a launcher send them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.tools.harness import ROOT, TINY, python

ENVIRONMENT = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT))
LONG = ('--cfg-options', 'train_cfg.max_epochs=40', 'default_hooks.checkpoint.max_keep_ckpts=2')


def start(*command) -> subprocess.Popen:
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT, cwd=ROOT)
    return subprocess.Popen([str(part) for part in command], start_new_session=True, **options)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    for _ in range(2400):
        if path.exists() or process.poll() is not None:
            return
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_that_the_run_goes_on_from(tmp_path, number):
    process = start(sys.executable, ROOT / 'tools/train.py', TINY, '--work-dir', tmp_path, *LONG)
    wait_for(tmp_path / 'epoch_1.pth', process)
    process.send_signal(number)
    log, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + number, log[-2000:]
    assert 'go on with the same command and --resume' in log and 'Traceback' not in log
    last = Path((tmp_path / 'last_checkpoint').read_text())
    meta = torch.load(last, weights_only=False)['meta']
    result = python(
        'train.py',
        TINY,
        '--work-dir',
        tmp_path,
        '--resume',
        '--cfg-options',
        f'train_cfg.max_epochs={meta["epoch"] + 1}',
    )
    assert f'resumed epoch: {meta["epoch"]}, iter: {meta["iter"]}' in result.stdout + result.stderr
    assert (tmp_path / f'epoch_{meta["epoch"] + 1}.pth').exists() and not list(tmp_path.glob('.*.tmp'))


@pytest.mark.slow
def test_a_launcher_that_is_signalled_leaves_a_checkpoint(tmp_path):
    command = ('bash', ROOT / 'tools/dist_train.sh', TINY, 2, '--work-dir', tmp_path, *LONG)
    environment = ENVIRONMENT | dict(
        PORT='29531', PATH=f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    )
    with open(tmp_path / 'log', 'w') as log:
        process = subprocess.Popen(
            [str(part) for part in command], env=environment, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
        wait_for(tmp_path / 'epoch_1.pth', process)
        os.killpg(process.pid, signal.SIGTERM)  # as a cluster does: the launcher passes it on once more
        process.wait(timeout=300)
    assert process.returncode != 0
    assert 'go on with the same command and --resume' in (tmp_path / 'log').read_text()
    last = Path((tmp_path / 'last_checkpoint').read_text())
    assert len(torch.load(last, weights_only=False)['random_states']) == 2
