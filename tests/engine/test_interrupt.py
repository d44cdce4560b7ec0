"""A signal ends a run at a point from which it goes on as if nothing had happened, and says how."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmrepmtl.apis import train
from mmrepmtl.engine import Interrupted
from mmrepmtl.engine.hooks import InterruptHook
from mmrepmtl.registry import HOOKS
from tests.distributed.launch import run_processes
from tests.engine.quick import quick_config, same, weights

ROOT = Path(__file__).resolve().parents[2]
HANDLED = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]


@HOOKS.register_module()
class SignalHook(Hook):
    """Sends this process signals at a point of the run."""

    def __init__(self, number: int, point: str, iteration: int, rank: int = 0, times: int = 1) -> None:
        self.number, self.iteration, self.rank, self.times = number, iteration, rank, times
        setattr(self, point, self._send)

    def _send(self, runner, *args, **kwargs) -> None:
        if runner.iter == self.iteration and runner.rank == self.rank:
            times, self.times = self.times, 0  # a validation has several iterations
            for _ in range(times):
                os.kill(os.getpid(), self.number)


def interrupted_config(folder, number=signal.SIGTERM, point='before_train_iter', iteration=5, by_epoch=True, **changes):
    cfg = quick_config(folder, by_epoch, **changes)
    cfg.custom_hooks.append(dict(type='SignalHook', number=int(number), point=point, iteration=iteration))
    return cfg


@pytest.fixture(autouse=True)
def handlers():
    """No test leaves a handler behind, and none of the runs does."""
    # A shell starts what it does not wait for with an ignored SIGINT.
    default = {number: signal.SIG_DFL for number in HANDLED} | {signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in default.items()}
    yield
    after = {number: signal.signal(number, handler) for number, handler in before.items()}
    assert after == default


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """Uninterrupted runs of both kinds of loop."""
    folder = tmp_path_factory.mktemp('whole')
    train(quick_config(folder / 'epochs'))
    train(quick_config(folder / 'iterations', by_epoch=False))
    return folder


@pytest.mark.parametrize('number', HANDLED)
def test_each_signal_leaves_a_checkpoint_and_its_status(tmp_path, number, capfd):
    with pytest.raises(Interrupted) as stopped:
        train(interrupted_config(tmp_path, number))
    assert stopped.value.code == 128 + number and isinstance(stopped.value, SystemExit)
    output = ''.join(capfd.readouterr())
    name = signal.Signals(number).name
    assert f'{name}: stopping after this iteration; a second one ends at once' in output
    assert f'interrupted by {name}: {tmp_path}/interrupted.pth holds iteration 6 of 12' in output
    assert 'go on with the same command and --resume' in output
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'interrupted.pth')
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['epoch_1.pth', 'interrupted.pth']


@pytest.mark.parametrize(
    'point, iteration',
    [
        ('before_train_iter', 7),  # the last iteration of an epoch
        ('before_train_epoch', 4),
        ('after_train_epoch', 8),
        ('before_val', 8),
        ('before_val_iter', 8),
        ('after_val', 8),
    ],
)
@pytest.mark.parametrize('interval', [1, 3])
def test_between_epochs_the_resumed_run_equals_an_uninterrupted_one(tmp_path, whole, point, iteration, interval):
    options = dict(default_hooks__checkpoint__interval=interval)
    if point == 'before_train_epoch':  # stops after the first iteration of the epoch
        options |= dict(default_hooks__checkpoint__interval=3)
    with pytest.raises(Interrupted):
        train(interrupted_config(tmp_path, signal.SIGTERM, point, iteration, **options))
    files = sorted(path.name for path in tmp_path.glob('*.pth'))
    if interval == 1 and point != 'before_train_epoch':
        assert files == ['epoch_1.pth', 'epoch_2.pth']  # the checkpoint that was due is enough
    else:
        assert files == ['interrupted.pth']
    if point != 'before_train_epoch':
        train(quick_config(tmp_path, resume=True, **options))
        assert same(weights(tmp_path / 'epoch_3.pth'), weights(whole / 'epochs/epoch_3.pth'))
        assert not (tmp_path / 'interrupted.pth').exists()


@pytest.mark.parametrize('iteration', [2, 3, 4, 9])
def test_an_iteration_loop_stops_after_the_iteration(tmp_path, iteration, capsys):
    with pytest.raises(Interrupted):
        train(interrupted_config(tmp_path, iteration=iteration, by_epoch=False))
    assert f'holds iteration {iteration + 1} of 12' in capsys.readouterr().out
    assert ('interrupted.pth' in os.listdir(tmp_path)) == ((iteration + 1) % 4 != 0)


def test_a_window_of_accumulation_is_finished_first(tmp_path, capsys):
    with pytest.raises(Interrupted):
        train(interrupted_config(tmp_path, iteration=4, optim_wrapper__accumulative_counts=3))
    assert 'holds iteration 6 of 12' in capsys.readouterr().out


def test_a_validation_that_is_made_up_for_is_left_too(tmp_path, capsys):
    options = dict(point='before_val_iter', iteration=8)
    with pytest.raises(Interrupted):
        train(interrupted_config(tmp_path, **options))
    capsys.readouterr()
    with pytest.raises(Interrupted):
        train(interrupted_config(tmp_path, **options, resume=True))
    log = capsys.readouterr().out
    assert 'it is done now' in log and 'epoch_2.pth holds iteration 8 of 12' in log
    assert json.loads((tmp_path / 'progress.json').read_text()) == dict(validated=4)


def test_in_the_last_validation_the_run_ends(tmp_path):
    with pytest.raises(Interrupted):
        train(interrupted_config(tmp_path, point='before_val_iter', iteration=12))
    assert (tmp_path / 'epoch_3.pth').exists()


def test_after_the_last_iteration_nothing_is_lost(tmp_path, whole):
    with pytest.raises(Interrupted):
        train(interrupted_config(tmp_path, point='after_val', iteration=12))
    assert same(weights(tmp_path / 'epoch_3.pth'), weights(whole / 'epochs/epoch_3.pth'))


@pytest.mark.parametrize('options', [dict(save_optimizer=False), dict(save_param_scheduler=False)])
def test_a_checkpoint_without_state_is_not_enough(tmp_path, options):
    changes = {f'default_hooks__checkpoint__{key}': value for key, value in options.items()}
    with pytest.raises(Interrupted):
        train(interrupted_config(tmp_path, point='after_train_epoch', iteration=4, **changes))
    assert (tmp_path / 'interrupted.pth').exists()


def test_it_goes_where_the_checkpoints_go_and_without_a_saving_hook_to_the_work_directory(tmp_path):
    with pytest.raises(Interrupted):
        train(interrupted_config(tmp_path / 'a', default_hooks__checkpoint__out_dir=str(tmp_path / 'out')))
    assert (tmp_path / 'out/a/interrupted.pth').exists()
    cfg = interrupted_config(tmp_path / 'b')
    cfg.default_hooks.checkpoint = None
    with pytest.raises(Interrupted):
        train(cfg)
    assert (tmp_path / 'b/last_checkpoint').read_text() == str(tmp_path / 'b/interrupted.pth')
    assert (tmp_path / 'b/interrupted.pth').exists()


@HOOKS.register_module()
class LateHook(Hook):
    """Runs after the interrupting hook and must have its turn."""

    priority = 'LOWEST'
    turns: list = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.turns.append(runner.iter)


def test_hooks_that_follow_have_their_turn(tmp_path):
    LateHook.turns.clear()
    cfg = interrupted_config(tmp_path)
    cfg.custom_hooks.append(dict(type='LateHook'))
    with pytest.raises(Interrupted):
        train(cfg)
    assert LateHook.turns == list(range(6))


def test_a_handler_of_the_users_own_and_an_ignored_signal_stay(tmp_path):
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda *_: heard.append(1)), signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        cfg = interrupted_config(tmp_path, signal.SIGUSR1)
        cfg.custom_hooks.append(
            dict(type='SignalHook', number=int(signal.SIGHUP), point='before_train_iter', iteration=5)
        )
        train(cfg)
    finally:
        signal.signal(signal.SIGUSR1, before[0])
        signal.signal(signal.SIGHUP, before[1])
    assert heard == [1] and (tmp_path / 'epoch_3.pth').exists()


def test_after_a_run_that_failed_signals_act_as_before(tmp_path):
    @HOOKS.register_module(force=True)
    class FailHook(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            raise RuntimeError('failed')

    cfg = quick_config(tmp_path)
    cfg.custom_hooks.append(dict(type='FailHook'))
    with pytest.raises(RuntimeError, match='failed'):
        train(cfg)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(5)


def test_a_run_in_another_thread_says_that_it_hears_nothing(tmp_path, capsys):
    thread = threading.Thread(target=train, args=(quick_config(tmp_path),))
    thread.start()
    thread.join()
    assert 'only the main thread hears signals' in capsys.readouterr().out and (tmp_path / 'epoch_3.pth').exists()


def test_configs_that_do_not_know_it_get_it(tmp_path):
    cfg = quick_config(tmp_path)
    cfg.custom_hooks = [dict(type='SignalHook', number=int(signal.SIGTERM), point='before_train_iter', iteration=5)]
    with pytest.raises(Interrupted):
        train(cfg)
    assert (tmp_path / 'interrupted.pth').exists()
    assert [type(hook).__name__ for hook in Runner.from_cfg(cfg).hooks].count('InterruptHook') == 1


TWICE = """
import signal, sys
from mmrepmtl.apis import train
from tests.engine import test_interrupt as t
number, times, workers = map(int, sys.argv[2:5])
options = dict(train_dataloader__num_workers=workers, train_dataloader__persistent_workers=workers > 0)
cfg = t.quick_config(sys.argv[1], **options)
hook = dict(type='SignalHook', number=number, point='before_train_iter', iteration=5, times=times)
if times == 0:
    hook.update(type='GroupHook', times=1)
cfg.custom_hooks.append(hook)
train(cfg)
"""


@HOOKS.register_module()
class GroupHook(SignalHook):
    """Signals the whole group of processes, as a terminal and a cluster do: workers of the data loaders too."""

    def _send(self, runner, *args, **kwargs) -> None:
        if runner.iter == self.iteration:
            os.killpg(os.getpgid(0), self.number)


def subprocess_status(folder, number, times, workers=0) -> tuple[int, str]:
    environment = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    command = [sys.executable, '-c', TWICE, str(folder), str(int(number)), str(times), str(workers)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, start_new_session=True)
    return result.returncode, result.stdout + result.stderr


@pytest.mark.slow
def test_a_second_signal_ends_the_process_at_once(tmp_path):
    status, _ = subprocess_status(tmp_path, signal.SIGTERM, 2)
    assert status == -signal.SIGTERM and not (tmp_path / 'interrupted.pth').exists()


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_workers_that_are_signalled_too_do_not_end_the_run_before_it_has_saved(tmp_path, number):
    status, log = subprocess_status(tmp_path, number, 0, workers=2)
    assert status == 128 + number and 'interrupted.pth holds iteration 6' in log and 'Traceback' not in log


def _distributed(rank: int, folder: str) -> dict:
    cfg = quick_config(folder, train_cfg__max_epochs=50, default_hooks__checkpoint__interval=100)
    cfg.launcher = 'pytorch'
    cfg.custom_hooks.append(
        dict(type='SignalHook', number=int(signal.SIGTERM), point='before_train_iter', iteration=5, rank=1)
    )
    cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT='1')
    iterations = []
    seen = InterruptHook._stop

    def stop(self, runner, meta):
        iterations.append(meta['iter'])
        seen(self, runner, meta)

    InterruptHook._stop = stop
    try:
        train(cfg)
    except Interrupted as error:
        assert dist.is_initialized()
        return dict(code=error.code, iterations=iterations)
    return dict(code=0, iterations=iterations)


@pytest.mark.slow
def test_one_signal_to_one_process_stops_all_at_the_same_iteration(tmp_path):
    first, second = run_processes(_distributed, str(tmp_path / 'run'))
    assert first == second and first['code'] == 143 and len(first['iterations']) == 1
    assert first['iterations'][0] >= 5 and (tmp_path / 'run/interrupted.pth').exists()
