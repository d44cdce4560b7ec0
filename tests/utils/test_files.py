"""Files are whole or not there; what killed writers leave is removed, and nothing else."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mmrepmtl.utils.files import TEMPORARY, sweep_temporary, whole_file

ROOT = Path(__file__).resolve().parents[2]
WRITER = """
import sys, time
from mmrepmtl.utils.files import whole_file
with whole_file(sys.argv[1]) as file:
    file.write(b'half')
    file.flush()
    print('writing', flush=True)
    time.sleep(600)
"""


def test_a_failed_writer_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / 'file'
    path.write_bytes(b'old')
    with pytest.raises(RuntimeError), whole_file(path) as file:
        file.write(b'new')
        raise RuntimeError
    assert path.read_bytes() == b'old' and os.listdir(tmp_path) == ['file']
    with whole_file(path) as file:
        file.write(b'new')
    assert path.read_bytes() == b'new' and os.listdir(tmp_path) == ['file']


def test_a_failed_write_names_the_file(tmp_path):
    with pytest.raises(OSError, match='No space left.*file'), whole_file(tmp_path / 'file'):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match='other'), whole_file(tmp_path / 'file'):
        open(tmp_path / 'other')


@pytest.mark.parametrize('name', ['a' * 255, 'ä' * 127, '漢' * 85])
def test_the_longest_names_can_be_written(tmp_path, name):
    with whole_file(tmp_path / name) as file:
        (temporary,) = os.listdir(tmp_path)
        assert temporary.startswith('.') and temporary.endswith(TEMPORARY) and len(temporary.encode()) <= 255
        file.write(b'x')
    assert os.listdir(tmp_path) == [name]


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path):
    command = [sys.executable, '-c', WRITER, str(tmp_path / 'epoch_1.pth')]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | dict(PYTHONPATH=str(ROOT))) as process:
        assert process.stdout.readline() == b'writing\n'
        (left,) = os.listdir(tmp_path)
        assert sweep_temporary(tmp_path) == [] and os.listdir(tmp_path) == [left]
        process.send_signal(signal.SIGKILL)
    (tmp_path / f'of_others{TEMPORARY}').touch()
    (tmp_path / f'.of_others{TEMPORARY}').touch()
    assert sweep_temporary(tmp_path) == [tmp_path / left]
    assert sorted(os.listdir(tmp_path)) == [f'.of_others{TEMPORARY}', f'of_others{TEMPORARY}']


def test_a_file_that_is_swept_before_its_lock_is_made_again(tmp_path, monkeypatch):
    import fcntl

    from mmrepmtl.utils import files

    swept = []

    class Late:
        LOCK_EX, LOCK_NB = fcntl.LOCK_EX, fcntl.LOCK_NB

        @staticmethod
        def flock(file, how):
            if not swept:
                swept.extend(os.listdir(tmp_path))
                (tmp_path / swept[0]).unlink()
            fcntl.flock(file, how)

    monkeypatch.setattr(files, 'fcntl', Late)
    with whole_file(tmp_path / 'file') as file:
        file.write(b'new')
    assert swept and (tmp_path / 'file').read_bytes() == b'new'
