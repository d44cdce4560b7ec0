"""Converters that are killed (SIGKILL) while they write a file: no half file has a name, and a second run goes on."""

import fcntl
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmrepmtl.datasets.conversion import running as converting
from mmrepmtl.utils.files import TEMPORARY
from tests.datasets.nyuv2_files import write_official
from tests.datasets.office_files import write_office31
from tests.datasets.pascal_files import write_archive
from tests.datasets.street_files import write_gta5, write_raw_cityscapes

ROOT = Path(__file__).resolve().parents[2]
SOURCES = dict(
    nyuv2=write_official,
    cityscapes=write_raw_cityscapes,
    gta5=write_gta5,
    pascal_context=write_archive,
    office=write_office31,
)
SIZED = ('nyuv2', 'cityscapes', 'gta5')
# In the middle of the conversion: the first file is conversion.json.
KILLED_AT = 6


def run(name, source, target):
    """A converter in this process."""
    spec = importlib.util.spec_from_file_location(f'kill_{name}', ROOT / f'tools/dataset_converters/{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    size = ['--size', '12x16'] if name in SIZED else []
    return module.main([str(source), str(target), '--workers', '0', '--allow-partial', *size])


def die_while_writing():
    """Has this process killed before the file is on the disk, with half of it written."""
    calls, fsync = [], os.fsync

    def fsync_or_die(descriptor):
        calls.append(descriptor)
        if len(calls) == KILLED_AT:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = fsync_or_die


def kill_all(folder):
    """Converts each source below ``folder`` in a process of its own that is killed; {name: how it ended}."""
    ends = {}
    for name in SOURCES:
        child = os.fork()
        if child == 0:
            die_while_writing()
            os._exit(run(name, Path(folder, 'in', name), Path(folder, 'out', name)))
        ends[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return ends


def python(code, **kwargs):
    environment = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    module = 'from tests.datasets import test_converters_killed as t; '
    return subprocess.run([sys.executable, '-c', module + code], env=environment, cwd=ROOT, **kwargs)


def files(folder):
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob('*')) if path.is_file()}


@pytest.fixture(scope='module')
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp('killed')
    for name, write in SOURCES.items():
        write(folder / 'in' / name)
    done = python(f'import json; print(json.dumps(t.kill_all({str(folder)!r})))', capture_output=True, text=True)
    assert json.loads(done.stdout.splitlines()[-1]) == dict.fromkeys(SOURCES, -signal.SIGKILL), done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize('name', SOURCES)
def test_a_killed_conversion_leaves_whole_files_and_goes_on(killed, tmp_path, name):
    source, target = killed / 'in' / name, killed / 'out' / name
    assert run(name, source, tmp_path) == 0
    expected = {file: path.read_bytes() for file, path in files(tmp_path).items()}
    left = {file: path.read_bytes() for file, path in files(target).items()}
    half = [file for file in left if file.endswith(TEMPORARY)]
    assert len(half) == 1 and len(left) == KILLED_AT < len(expected)
    written = {file: content for file, content in left.items() if file not in half}
    assert all(content == expected[file] for file, content in written.items())
    times = {file: (target / file).stat().st_mtime_ns for file in written}
    assert run(name, source, target) == 0
    assert {file: path.read_bytes() for file, path in files(target).items()} == expected
    assert {file: (target / file).stat().st_mtime_ns for file in written} == times


_lock = None


def kill_the_main_process(folder, names):
    """Takes a lock for as long as this worker lives, and kills the main process."""
    global _lock
    _lock = open(Path(folder) / 'lock', 'wb')
    fcntl.flock(_lock, fcntl.LOCK_EX)
    os.kill(os.getppid(), signal.SIGKILL)
    return dict(image=np.zeros(3))


def convert_and_be_killed(folder):
    sample = converting.Sample('a', folder, dict(image=Path(folder) / 'a.npy'))
    plan = converting.Plan(kill_the_main_process, dict(train=[sample]), dict(train=1))
    converting.convert_all(plan, 1, lambda done, total: None)


@pytest.mark.slow
def test_workers_end_with_the_main_process(tmp_path):
    # No pipe to a worker, or this would wait for its end.
    done = python(f't.convert_and_be_killed({str(tmp_path)!r})', stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert done.returncode == -signal.SIGKILL

    def give_up(number, frame):
        raise TimeoutError('a worker is still there')

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    try:
        with open(tmp_path / 'lock', 'rb') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
