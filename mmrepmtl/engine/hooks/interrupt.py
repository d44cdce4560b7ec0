"""Saves a checkpoint when a signal asks a run to stop."""

import atexit
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from mmengine.dist import all_reduce, barrier
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmrepmtl.engine.aliases import Batch, Outputs, State
from mmrepmtl.engine.hooks.resume import ResumeHook
from mmrepmtl.engine.hooks.saving import CheckpointHook, name_last
from mmrepmtl.engine.last_checkpoint import INTERRUPTED
from mmrepmtl.engine.optim_wrapper import MultiTaskOptimWrapper
from mmrepmtl.methods.collectives import num_processes
from mmrepmtl.registry import HOOKS

SIGNALS = ('SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1')
# A launcher passes on a signal that the terminal or the cluster has sent to its processes already.
PASSED_ON_SECONDS = 5.0


class Interrupted(SystemExit):
    """Raised after a signal stopped the run; a process that does not catch it ends with status 128 + the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = number


@HOOKS.register_module()
class InterruptHook(Hook):
    """Ends a run on SIGINT (Ctrl-C), SIGTERM, SIGHUP or SIGUSR1 at the next point that it can be resumed from exactly.

    That is the end of the iteration, or of the accumulation window. The checkpoint is ``interrupted.pth``, unless a
    checkpoint that is due holds this iteration. ``last_checkpoint`` names it, the log says how to go on, and the next
    checkpoint that is due replaces it. A second signal ends the process at once.

    With several processes one signal to one of them stops all at the same iteration. They ask each other about once a
    second, in one collective of two numbers. If a signal is ignored (``nohup``) or has another handler when training
    starts, it stays so. A cluster signals the workers of the data loaders too; they ignore it and work until the run
    ends them.
    """

    priority = 'LOWEST'  # after every hook that changes or saves what a checkpoint holds

    # The run that listens, set before the training.
    _runner: Runner
    _pid: int

    def __init__(self) -> None:
        self._handlers: dict[int, Any] = {}
        self._signal = self._stopping = 0
        self._since = 0.0
        self._training = False
        self._next_ask = self._asked_iter = 0
        self._asked_time = 0.0

    # ---- signals ----

    def before_train(self, runner: Runner) -> None:
        """Installs the signal handlers."""
        self._runner, self._pid, self._training = runner, os.getpid(), True
        self._signal = self._stopping = 0
        self._next_ask = self._asked_iter = runner.iter
        self._asked_time = time.monotonic()
        loaders: list[Any] = [runner.train_dataloader]
        loaders += [runner.val_dataloader] if runner.val_loop is not None else []
        for loader in loaders:
            if getattr(loader, 'num_workers', 0) and not isinstance(loader.worker_init_fn, _WorkerInit):
                loader.worker_init_fn = _WorkerInit(loader.worker_init_fn)
                # Exit functions run last in, first out: this one before multiprocessing's, which ends the workers.
                atexit.register(loader.worker_init_fn.let_workers_end)
        if threading.current_thread() is not threading.main_thread():
            runner.logger.warning('InterruptHook: only the main thread hears signals; none will leave a checkpoint')
            return
        for name in SIGNALS:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                self._handlers[number] = signal.signal(number, self._on_signal)

    def after_train(self, runner: Runner) -> None:
        """Restores the signal handlers; raises for a signal in a finished run too, so that nothing follows it.

        Raises:
            Interrupted: If a signal came.
        """
        found = self._stopping or self._signal_of_any_rank(runner)
        self._training = False
        self._restore_handlers()
        if found:
            self._call_later_hooks(runner, 'after_train')
            runner.logger.warning(f'interrupted by {signal.Signals(found).name}; the training is finished')
            raise Interrupted(found)

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, handler)
        self._handlers = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a forked worker
            return
        again = self._signal and (num_processes() == 1 or time.monotonic() - self._since > PASSED_ON_SECONDS)
        if again or not self._is_training(frame):
            # Act as if this handler were not there. An error may have ended the training without a call of this hook.
            handler = self._handlers.get(number, signal.SIG_DFL)
            self._restore_handlers()
            signal.signal(number, signal.SIG_DFL if again else handler)
            os.kill(os.getpid(), number)
            return
        if self._signal:
            return
        self._signal, self._since = number, time.monotonic()
        if self._runner.rank == 0:
            text = f'\n{signal.Signals(number).name}: stopping after this iteration; a second one ends at once\n'
            with contextlib.suppress(OSError):  # a terminal that is gone
                os.write(2, text.encode())

    def _is_training(self, frame: FrameType | None) -> bool:
        """Whether the train loop is on the stack."""
        while frame is not None:
            if frame.f_locals.get('self') is self._runner.train_loop:
                return True
            frame = frame.f_back
        return False

    # ---- stopping ----

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Batch = None, outputs: Outputs = None
    ) -> None:
        """Stops after this iteration if a signal came and no accumulation window is open."""
        if not self._stopping and (num_processes() == 1 or runner.iter >= self._next_ask):
            self._stopping = self._signal_of_any_rank(runner)
        if not self._stopping or not self._window_ends(runner):
            return
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        if by_epoch and batch_idx + 1 == len(runner.train_dataloader):
            return  # the epoch is counted first: after_train_epoch stops the run
        self._call_later_hooks(runner, 'after_train_iter', batch_idx=batch_idx, data_batch=data_batch, outputs=outputs)
        self._stop(runner, dict(epoch=runner.epoch, iter=runner.iter + 1))

    def after_train_epoch(self, runner: Runner) -> None:
        """Stops between two epochs."""
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            self._stopping = self._stopping or self._signal_of_any_rank(runner)
            if self._stopping and self._window_ends(runner):
                self._call_later_hooks(runner, 'after_train_epoch')
                self._stop(runner, dict(epoch=runner.epoch + 1, iter=runner.iter))

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Batch = None, outputs: Outputs = None) -> None:
        """Stops inside a validation if a checkpoint holds the weights: the resumed run repeats the validation."""
        if self._signal and self._training and num_processes() == 1 and self._saved(runner) == runner.iter:
            self._stopping = self._signal
            self._stop(runner, dict(epoch=runner.epoch, iter=runner.iter))

    def after_val(self, runner: Runner) -> None:
        """Stops after a validation inside training; after the last one the run ends anyway."""
        if not self._training or runner.iter == 0 or runner.iter >= runner.max_iters:
            return
        self._stopping = self._stopping or self._signal_of_any_rank(runner)
        if self._stopping and self._window_ends(runner):
            self._call_later_hooks(runner, 'after_val')
            self._stop(runner, dict(epoch=runner.epoch, iter=runner.iter))

    def _call_later_hooks(self, runner: Runner, point: str, **kwargs: Any) -> None:
        """Calls the hooks that follow this one and would be skipped; one may save a checkpoint that is due."""
        for hook in runner.hooks[runner.hooks.index(self) + 1 :]:
            getattr(hook, point)(runner, **kwargs)

    def _signal_of_any_rank(self, runner: Runner) -> int:
        """Returns the signal that any process got, or 0; all processes call this at the same iteration."""
        if num_processes() == 1:
            return self._signal
        now = time.monotonic()
        passed = max(runner.iter - self._asked_iter, 1)
        interval = max(1, min(1000, int(passed / max(now - self._asked_time, 1e-6))))
        found = torch.tensor([self._signal, -interval])
        all_reduce(found, op='max')
        self._asked_iter, self._asked_time = runner.iter, now
        self._next_ask = runner.iter - int(found[1])
        return int(found[0])

    @staticmethod
    def _window_ends(runner: Runner) -> bool:
        wrapper = runner.optim_wrapper
        # A MultiTaskOptimWrapperDict has one window for all its optimizers; another dict has a window for each.
        has_members = isinstance(wrapper, OptimWrapperDict) and not isinstance(wrapper, MultiTaskOptimWrapper)
        wrappers = [one for _, one in wrapper.items()] if has_members else [wrapper]
        return all(one.should_update() for one in wrappers)

    @staticmethod
    def _saved(runner: Runner) -> int | None:
        """The iteration that the newest checkpoint holds; None if no hook saves any."""
        return max((hook.saved_iter or 0 for hook in runner.hooks if isinstance(hook, CheckpointHook)), default=None)

    def _stop(self, runner: Runner, meta: State) -> None:
        savers = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
        if self._saved(runner) == meta['iter']:
            path = next(hook.last_ckpt for hook in savers if hook.saved_iter == meta['iter'])
        else:
            for hook in runner.hooks:
                if isinstance(hook, ResumeHook):
                    hook.gather(runner, meta['iter'])
            path = savers[0].save_interrupted(runner, dict(meta)) if savers else _save_without_hook(runner, dict(meta))
        barrier()  # when one process ends, the launcher ends the others, which may still be writing
        runner.logger.warning(
            f'interrupted by {signal.Signals(self._stopping).name}: {path} holds iteration {meta["iter"]} of '
            f'{runner.max_iters}; go on with the same command and --resume'
        )
        self._training = False
        self._restore_handlers()
        raise Interrupted(self._stopping)


def _save_without_hook(runner: Runner, meta: State) -> str:
    """Saves the checkpoint in a run without a CheckpointHook."""
    runner.save_checkpoint(runner.work_dir, INTERRUPTED, meta=meta, by_epoch=False)
    path = os.path.join(runner.work_dir, INTERRUPTED)
    if runner.rank == 0:
        name_last(runner.work_dir, path)
    return path


class _WorkerInit:
    """Makes a worker of a data loader ignore the signals of its run until the run ends it.

    Args:
        initialise: The ``worker_init_fn`` that the loader had before.
    """

    def __init__(self, initialise: Callable[[int], None] | None) -> None:
        self._initialise = initialise
        # Shared memory: a handler may run at any moment, and must not wait for a lock.
        self._over = multiprocessing.RawValue('b', 0)

    def __call__(self, worker: int) -> None:
        for name in SIGNALS:
            number = getattr(signal, name, None)
            if number is not None:
                signal.signal(number, self._on_sigterm if number == signal.SIGTERM else signal.SIG_IGN)
        if self._initialise is not None:
            self._initialise(worker)

    def let_workers_end(self) -> None:
        """Lets SIGTERM end the workers from here on: now it comes from the run or from the interpreter at its exit."""
        self._over.value = 1

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        if self._over.value:
            os._exit(0)
