"""A run that is killed (SIGKILL) at any step of writing goes on to the weights of one that was not."""

import os
import signal
import traceback
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from mmrepmtl.apis import train
from mmrepmtl.utils import files
from tests.engine.quick import quick_config, same, weights

OPTIONS = dict(default_hooks__checkpoint__max_keep_ckpts=1)
BEST = OPTIONS | dict(default_hooks__checkpoint__save_best='a/mIoU', default_hooks__checkpoint__rule='greater')


def die_at(step: int | None) -> list[str]:
    """Counts the steps at which files change, and kills this process before the one of that number."""
    steps: list[str] = []

    def counted(name, function):
        def call(*args, **kwargs):
            if len(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            steps.append(f'{name} {Path(str(args[-1])).name}')
            return function(*args, **kwargs)

        return call

    class Halves:
        """Writes the first half of what it is given, which is a step of its own."""

        def __init__(self, file) -> None:
            self._file = file

        def __getattr__(self, key):
            return getattr(self._file, key)

        def __enter__(self):
            return self

        def __exit__(self, *error) -> None:
            self._file.close()

        def write(self, data) -> None:
            half = len(data) // 2
            self._file.write(data[:half])
            self._file.flush()
            counted('write', self._file.write)(data[half:])

    opened = files.open_temporary
    files.open_temporary = lambda *given: (lambda pair: (pair[0], Halves(pair[1])))(opened(*given))
    for name in ('replace', 'remove', 'fsync'):
        setattr(os, name, counted(name, getattr(os, name)))
    return steps


def in_child(function, *args) -> int:
    """Runs it in a process of its own; the status that it ended with, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            function(*args)
            status = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _run(folder, step, options, resume=False) -> None:
    steps = die_at(step)
    train(quick_config(folder, resume=resume, **options))
    Path(folder, 'steps.txt').write_text('\n'.join(steps))


@pytest.mark.slow
@pytest.mark.parametrize('options, stride', [(OPTIONS, 5), (BEST, 7)], ids=['last', 'best'])
def test_a_kill_at_any_step_loses_nothing(tmp_path, options, stride):
    """The strides have no factor in common with the steps of a file, so that every kind of step has its turn."""
    # In a fresh process: torch refuses a backward in the fork of one whose autograd has started threads.
    mp.spawn(_kill_at_steps, (tmp_path, options, stride))
    assert (tmp_path / 'whole/epoch_3.pth').is_file()


def _kill_at_steps(rank, tmp_path, options, stride) -> None:
    assert in_child(_run, tmp_path / 'whole', None, options) == 0
    expected = weights(tmp_path / 'whole/epoch_3.pth')
    steps = (tmp_path / 'whole/steps.txt').read_text().splitlines()
    names = sorted(path.name for path in (tmp_path / 'whole').glob('*.pth'))
    assert len(steps) > 30 and any(step.startswith('remove epoch_1') for step in steps)
    for number, step in list(enumerate(steps))[::stride]:
        folder = tmp_path / f'killed_{number}'
        assert in_child(_run, folder, number, options) == -signal.SIGKILL, step
        # Whatever is named and there is whole.
        for path in folder.glob('*.pth'):
            assert weights(path), (step, path)
        if (folder / 'last_checkpoint').exists():
            assert Path((folder / 'last_checkpoint').read_text()).is_file(), step
        assert in_child(_run, folder, None, options, True) == 0, step
        assert same(weights(folder / 'epoch_3.pth'), expected), step
        assert not list(folder.glob('.*')), step
        assert sorted(path.name for path in folder.glob('epoch_*.pth')) == ['epoch_3.pth'], step
        assert len(list(folder.glob('*.pth'))) <= len(names) + 1, step


@pytest.mark.slow
def test_a_kill_while_it_resumes_loses_nothing(tmp_path):
    mp.spawn(_kill_while_resuming, (tmp_path,))
    assert (tmp_path / 'whole/epoch_3.pth').is_file()


def _kill_while_resuming(rank, tmp_path) -> None:
    assert in_child(_run, tmp_path / 'whole', None, OPTIONS) == 0
    expected = weights(tmp_path / 'whole/epoch_3.pth')
    folder = tmp_path / 'killed'
    for number in (12, 3, 7, 5, 9):
        in_child(_run, folder, number, OPTIONS, True)
    assert in_child(_run, folder, None, OPTIONS, True) == 0
    assert same(weights(folder / 'epoch_3.pth'), expected) and not list(folder.glob('.*'))
