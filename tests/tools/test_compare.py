"""``compare`` as a user runs it, with trainings of seconds."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from mmrepmtl.comparison.results_file import read_results
from tests.tools.harness import ROOT, TINY, python

pytestmark = pytest.mark.slow

FAILS = 'ew:optim_wrapper.optimizer.type=Nope'
SWEEP = 'rep-mtl:lambda_tsr=0.1|0.9'


def compare(folder, *methods, seeds=1, options=('train_cfg.max_epochs=1',), select=('--select-on', 'val'), check=True):
    arguments = ('--methods', *methods, '--seeds', seeds, '--work-dir', folder, '--device', 'cpu', '--jobs', 2)
    return python('compare.py', TINY, *arguments, *select, '--cfg-options', *options, check=check)


@pytest.fixture(scope='module')
def compared(tmp_path_factory):
    """The folder of a comparison with a sweep and a method that fails, and what the command said."""
    folder = tmp_path_factory.mktemp('compared')
    return folder, compare(folder, FAILS, 'stl', 'ew', SWEEP, check=False)


def test_a_failing_method_is_reported_and_the_others_are_measured(compared):
    folder, result = compared
    assert result.returncode == 1 and 'TypeError' in result.stdout and 'Traceback' not in result.stderr
    assert f'failed: {FAILS}, seed 0; the last lines of' in result.stdout
    assert '1 of 6 runs failed; the same command tries them again' in result.stdout
    rows = read_results(folder / 'results.csv')
    assert {row.label for row in rows if row.split == 'test'} > {'constant', 'stl', 'ew'}
    ew = [row for row in rows if row.label == 'ew' and row.split == 'test']
    stl = [row for row in rows if row.label == 'stl']
    assert {row.metric for row in ew} == {row.metric for row in stl} and len(ew) == 10
    assert all(row.step_seconds > 0 and row.peak_memory_mib > 100 and row.train_seconds > 1 for row in ew + stl)
    for name in ('table.md', 'table.tex', 'report.html', 'comparison.json'):
        assert (folder / name).stat().st_size > 100


def test_a_value_is_chosen_on_the_validation_data_and_it_alone_is_tested(compared):
    folder, result = compared
    rows = read_results(folder / 'results.csv')
    values = {'rep-mtl:lambda_tsr=0.1', 'rep-mtl:lambda_tsr=0.9'}
    assert {row.label for row in rows if row.split == 'val'} == {'ew', *values}
    chosen = json.loads((folder / 'comparison.json').read_text())['choices'][SWEEP]['chosen']
    assert {row.label for row in rows if row.split == 'test'} & values == {chosen}
    assert f'{chosen} is chosen on the validation data' in result.stdout
    selections = {row.selection for row in rows if row.label == chosen and row.split == 'test'}
    assert selections == {'last checkpoint, no selection; the best of 2 values on the validation data'}
    for label in values:
        run = folder / 'runs' / label / 'seed_0'
        assert (run / 'test_metrics.json').exists() == (label == chosen)
        meta = json.loads((run / 'val' / 'test_metrics.json').read_text())['meta']
        assert '"split": "val"' in meta['test_data'] and '"split": "test"' not in meta['test_data']


def test_what_is_finished_is_not_run_again_and_another_config_is_refused(compared):
    folder, _ = compared
    before = {path: path.stat().st_mtime_ns for path in (folder / 'runs').rglob('*.pth')}
    assert len(before) >= 6
    result = compare(folder, 'stl', 'ew', SWEEP)
    assert 'started' not in result.stdout and '3 runs, 3 of them are done' in result.stdout
    assert {path: path.stat().st_mtime_ns for path in (folder / 'runs').rglob('*.pth')} == before
    result = compare(folder, 'ew', options=['train_cfg.max_epochs=3'], select=(), check=False)
    assert result.returncode == 1 and 'runs/ew: train_cfg.max_epochs was 1 and is 3' in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


LONG = ('train_cfg.max_epochs=40', 'train_cfg.val_interval=40', 'default_hooks.checkpoint.max_keep_ckpts=1')


def epochs(log) -> list[int]:
    text = log.read_text() if log.is_file() else ''
    return [int(number) for number in re.findall(r'Epoch\(train\) +\[(\d+)\]\[4/4\]', text)]


def start_and_send(folder, number, epoch):
    """Starts the comparison and sends it a signal when its run is in this epoch; gives the status.

    A Ctrl-C reaches all processes of a terminal, a kill only one.
    """
    arguments = ['--methods', 'ew', '--seeds', '1', '--work-dir', str(folder), '--cfg-options', *LONG]
    environment = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT))
    command = [sys.executable, ROOT / 'tools/compare.py', TINY, *arguments]
    process = subprocess.Popen(command, env=environment, cwd=ROOT, start_new_session=True)
    for _ in range(1200):
        if epoch in epochs(folder / 'runs/ew/seed_0/run.log'):
            (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
            return process.wait(120)
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    raise AssertionError('the run did not get there')


def test_a_stopped_and_a_killed_comparison_go_on_where_they_were(tmp_path):
    log = tmp_path / 'runs/ew/seed_0/run.log'
    assert start_and_send(tmp_path, signal.SIGINT, 3) == 128 + signal.SIGINT
    assert json.loads((log.parent / 'run.json').read_text())['state'] == 'interrupted'
    assert start_and_send(tmp_path, signal.SIGKILL, 12) == -signal.SIGKILL
    compare(tmp_path, 'ew', options=LONG, select=())
    assert epochs(log) == list(range(1, 41))
    steps = [attempt['step'] for attempt in json.loads((log.parent / 'run.json').read_text())['attempts']]
    assert steps == ['train', 'train', 'train', 'test']
    assert len([row for row in read_results(tmp_path / 'results.csv') if row.label == 'ew']) == 10
