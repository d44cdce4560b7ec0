"""The process of one run: its record, its claim on the folder, how it is stopped. The commands are small scripts."""

import errno
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import cloudpickle
import pytest

from mmrepmtl.comparison import job as job_module
from mmrepmtl.comparison.job import CHECKPOINT, RunJob, is_free, is_gone, tail
from mmrepmtl.comparison.locks import FolderLock
from tests.comparison.harness import TRAINING, wait_for


def script(text):
    return [sys.executable, '-c', text]


def spec(folder, *steps, alive=None):
    named = [dict(name=name, command=command) for name, command in steps]
    return dict(folder=str(folder), steps=named, env=dict(MARK='1'), cwd=str(folder.parent), alive=alive, about={})


def record(folder):
    return json.loads((folder / 'run.json').read_text())


def test_commands_run_in_turn_and_none_twice(tmp_path):
    folder = tmp_path / 'run'
    train = script("import os; print('trained', os.environ['MARK'])")
    assert RunJob(spec(folder, ('train', train), ('test', script('raise SystemExit(3)'))))() == 'failed'
    assert record(folder)['state'] == 'failed' and record(folder)['steps_done'] == ['train']
    assert RunJob(spec(folder, ('train', train), ('test', script("print('tested')"))))() == 'done'
    assert record(folder)['steps_done'] == ['train', 'test'] and record(folder)['finished']
    assert [attempt['step'] for attempt in record(folder)['attempts']] == ['train', 'test', 'test']
    assert all(attempt['max_rss_mib'] > 1 for attempt in record(folder)['attempts'])
    lines = [line for line in tail(folder / 'run.log') if not line.startswith('$')]
    assert lines == ['trained 1', 'tested']


def test_each_attempt_says_what_it_was_made_with(tmp_path):
    folder = tmp_path / 'run'
    fails, works = script('raise SystemExit(3)'), script('pass')
    first, second = (dict(commit=name, versions=dict(torch=name), settings={}) for name in 'ab')
    RunJob(spec(folder, ('train', works), ('test', fails)) | dict(about=first))()
    RunJob(spec(folder, ('train', works), ('test', works)) | dict(about=second))()
    assert [attempt['commit'] for attempt in record(folder)['attempts']] == ['a', 'a', 'b']
    assert [attempt['versions']['torch'] for attempt in record(folder)['attempts']] == ['a', 'a', 'b']


def test_a_record_that_says_it_once_for_all_is_not_overwritten(tmp_path):
    folder = tmp_path / 'run'
    folder.mkdir()
    old = dict(attempts=[dict(step='train', started=0.0, seconds=1.0)], steps_done=['train'], commit='a')
    (folder / 'run.json').write_text(json.dumps(old))
    RunJob(spec(folder, ('train', []), ('test', script('pass'))) | dict(about=dict(commit='b')))()
    assert [attempt['commit'] for attempt in record(folder)['attempts']] == ['a', 'b']


def test_the_checkpoint_is_the_one_that_the_run_names_wherever_its_folder_is_now(tmp_path):
    folder = tmp_path / 'run'
    folder.mkdir()
    (folder / 'epoch_2.pth').touch()
    (folder / 'last_checkpoint').write_text('/where/it/was/epoch_2.pth')
    step = ('test', [*script('import sys; print(sys.argv[1])'), CHECKPOINT])
    assert RunJob(spec(folder, step))() == 'done'
    assert tail(folder / 'run.log')[-1] == str(folder / 'epoch_2.pth')


def start(folder, lock):
    """The job in a process of its own, which knows nothing of this package."""
    cloudpickle.register_pickle_by_value(job_module)
    pickled = folder.parent / 'job.pkl'
    pickled.write_bytes(cloudpickle.dumps(RunJob(spec(folder, ('train', script(TRAINING)), alive=str(lock.alive)))))
    code = (
        f'import pickle, sys; job = pickle.load(open({str(pickled)!r}, "rb")); assert "torch" not in sys.modules; job()'
    )
    process = subprocess.Popen(script(code))
    wait_for(lambda: 'begun' in tail(folder / 'run.log'))
    return process


def test_a_run_whose_comparison_is_gone_is_asked_to_stop_once(tmp_path):
    folder, lock = tmp_path / 'run', FolderLock(tmp_path / 'comparison')
    process = start(folder, lock)
    assert not is_free(folder / '.claim') and RunJob(spec(folder))() == 'busy'
    lock.release()
    assert process.wait(30) == 0
    assert record(folder)['state'] == 'interrupted' and tail(folder / 'run.log')[-1] == 'checkpoint written'
    assert is_free(folder / '.claim')


def test_a_killed_job_leaves_the_claim_to_its_training_and_its_time_in_the_record(tmp_path):
    folder, lock = tmp_path / 'run', FolderLock(tmp_path / 'comparison')
    process = start(folder, lock)
    training = int(Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()[0])
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not is_free(folder / '.claim')  # the training is still at work
    os.kill(training, signal.SIGTERM)
    wait_for(lambda: is_free(folder / '.claim'))
    assert RunJob(spec(folder, ('train', script('pass'))))() == 'done'
    killed, done = record(folder)['attempts']
    assert killed['state'] == 'killed' and killed['seconds'] >= 0 and done['state'] == 'done'
    lock.release()


def test_a_look_at_the_lock_is_no_claim(tmp_path):
    folder = tmp_path / 'run'
    folder.mkdir()
    looking = open(folder / '.claim', 'w')  # noqa: SIM115 - closed by the timer
    fcntl.flock(looking, fcntl.LOCK_SH)
    threading.Timer(0.3, looking.close).start()
    assert RunJob(spec(folder, ('train', script('pass'))))() == 'done'


def test_a_file_system_without_locks_still_compares(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(job_module.fcntl, 'flock', refuse)
    logger = logging.getLogger('mmrepmtl.locks')
    monkeypatch.setattr('mmrepmtl.comparison.locks.print_log', lambda text, _, level: logger.log(level, text))
    folder, lock = tmp_path / 'run', FolderLock(tmp_path)
    assert f'{tmp_path}: this file system has no locks (flock)' in caplog.text
    # Longer than the run looks after its comparison, which is there.
    step = ('train', script(f'import time; time.sleep({2.5 * job_module.POLL_SECONDS})'))
    assert RunJob(spec(folder, step, alive=str(lock.alive)))() == 'done' and not is_gone(lock.alive)
    lock.release()
    assert is_gone(lock.alive)


def test_a_second_comparison_is_told_of_the_first(tmp_path):
    first = FolderLock(tmp_path)
    with pytest.raises(ValueError, match=rf'another compare is at work in .* \(process {os.getpid()} on'):
        FolderLock(tmp_path)
    first.release()
    FolderLock(tmp_path).release()
    assert not list(tmp_path.glob('.compare.alive*'))
