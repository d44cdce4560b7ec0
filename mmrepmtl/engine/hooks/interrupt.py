"""A run that is asked to stop leaves a checkpoint."""

import atexit
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

import torch
from mmengine.dist import all_reduce, barrier
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.runner import EpochBasedTrainLoop

from mmrepmtl.engine.hooks.checkpoint import CheckpointHook, name_last
from mmrepmtl.engine.hooks.resume import ResumeHook
from mmrepmtl.engine.last_checkpoint import INTERRUPTED
from mmrepmtl.engine.optim_wrapper import MultiTaskOptimWrapper
from mmrepmtl.methods.collectives import num_processes
from mmrepmtl.registry import HOOKS

SIGNALS = ('SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1')
# A launcher passes on a signal that the terminal or the cluster has sent to its processes already.
PASSED_ON_SECONDS = 5.0


class Interrupted(SystemExit):
    """The run stopped because a signal asked it to; a process that lets it pass ends with status 128 + the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = number


@HOOKS.register_module()
class InterruptHook(Hook):
    """Ends a run on SIGINT (Ctrl-C), SIGTERM, SIGHUP or SIGUSR1 at the next point that it can be resumed from exactly.

    That is the end of the iteration, or of the accumulation window. The checkpoint is ``interrupted.pth``, unless one
    that is due holds this iteration; ``last_checkpoint`` names it, the log says how to go on, and the next checkpoint
    that is due replaces it. A second signal ends the process at once.

    Under several processes one signal to one of them stops all at the same iteration. They ask each other about once a
    second, in one collective of two numbers. A signal that was ignored (``nohup``) or has a handler of its own when
    training starts is left as it is. Workers of the data loaders, which a cluster signals too, go on until the run
    ends them.
    """

    priority = 'LOWEST'  # after every hook that changes or saves what a checkpoint holds

    def __init__(self) -> None:
        self._handlers: dict[int, Any] = {}
        self._signal = self._stopping = 0
        self._since = 0.0
        self._runner, self._training = None, False
        self._next_look = self._looked = 0
        self._looked_at = 0.0

    # ---- signals ----

    def before_train(self, runner) -> None:
        """Listens from here on."""
        self._runner, self._pid, self._training = runner, os.getpid(), True
        self._signal = self._stopping = 0
        self._next_look = self._looked = runner.iter
        self._looked_at = time.monotonic()
        for loader in (runner.train_dataloader, runner.val_dataloader if runner.val_loop is not None else None):
            if getattr(loader, 'num_workers', 0) and not isinstance(loader.worker_init_fn, _Deaf):
                loader.worker_init_fn = _Deaf(loader.worker_init_fn)
                # Last in, first out: before multiprocessing ends the workers and waits for them.
                atexit.register(loader.worker_init_fn.end)
        if threading.current_thread() is not threading.main_thread():
            runner.logger.warning('InterruptHook: only the main thread hears signals; none will leave a checkpoint')
            return
        for name in SIGNALS:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                self._handlers[number] = signal.signal(number, self._hear)

    def after_train(self, runner) -> None:
        """Gives the signals back; a finished run that was asked to stop says so too, to what would follow it."""
        found = self._stopping or self._look(runner)
        self._training = False
        self._release()
        if found:
            self._let_others(runner, 'after_train')
            runner.logger.warning(f'interrupted by {signal.Signals(found).name}; the training is finished')
            raise Interrupted(found)

    def _release(self) -> None:
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._hear:
                signal.signal(number, handler)
        self._handlers = {}

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a forked worker
            return
        again = self._signal and (num_processes() == 1 or time.monotonic() - self._since > PASSED_ON_SECONDS)
        if again or not self._is_training(frame):
            # As if nobody had listened; an error may have ended the training without a word to this hook.
            handler = self._handlers.get(number, signal.SIG_DFL)
            self._release()
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
        while frame is not None:
            if frame.f_locals.get('self') is self._runner.train_loop:
                return True
            frame = frame.f_back
        return False

    # ---- stopping ----

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Stops here if a signal came, and gradients of a window are not under way."""
        if not self._stopping and (num_processes() == 1 or runner.iter >= self._next_look):
            self._stopping = self._look(runner)
        if not self._stopping or not self._window_ends(runner):
            return
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        if by_epoch and batch_idx + 1 == len(runner.train_dataloader):
            return  # to be counted as an epoch first
        self._let_others(runner, 'after_train_iter', batch_idx=batch_idx, data_batch=data_batch, outputs=outputs)
        self._stop(runner, dict(epoch=runner.epoch, iter=runner.iter + 1))

    def after_train_epoch(self, runner) -> None:
        """Stops between two epochs."""
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            self._stopping = self._stopping or self._look(runner)
            if self._stopping and self._window_ends(runner):
                self._let_others(runner, 'after_train_epoch')
                self._stop(runner, dict(epoch=runner.epoch + 1, iter=runner.iter))

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Leaves a validation unfinished if a checkpoint holds the weights: the resumed run does it again."""
        if self._signal and self._training and num_processes() == 1 and self._saved(runner) == runner.iter:
            self._stopping = self._signal
            self._stop(runner, dict(epoch=runner.epoch, iter=runner.iter))

    def after_val(self, runner) -> None:
        """Stops after a validation inside training, unless it was the last one, after which the run ends anyway."""
        if not self._training or runner.iter == 0 or runner.iter >= runner.max_iters:
            return
        self._stopping = self._stopping or self._look(runner)
        if self._stopping and self._window_ends(runner):
            self._let_others(runner, 'after_val')
            self._stop(runner, dict(epoch=runner.epoch, iter=runner.iter))

    def _let_others(self, runner, point: str, **kwargs) -> None:
        """Gives the hooks that follow this one their turn, a checkpoint that is due among them."""
        for hook in runner.hooks[runner.hooks.index(self) + 1 :]:
            getattr(hook, point)(runner, **kwargs)

    def _look(self, runner) -> int:
        """The signal that any process got; called by all at the same iteration."""
        if num_processes() == 1:
            return self._signal
        now = time.monotonic()
        passed = max(runner.iter - self._looked, 1)
        interval = max(1, min(1000, int(passed / max(now - self._looked_at, 1e-6))))
        found = torch.tensor([self._signal, -interval])
        all_reduce(found, op='max')
        self._looked, self._looked_at = runner.iter, now
        self._next_look = runner.iter - int(found[1])
        return int(found[0])

    @staticmethod
    def _window_ends(runner) -> bool:
        wrapper = runner.optim_wrapper
        # Ours with several optimizers has one window for all of them, which its members do not know.
        apart = isinstance(wrapper, OptimWrapperDict) and not isinstance(wrapper, MultiTaskOptimWrapper)
        wrappers = [one for _, one in wrapper.items()] if apart else [wrapper]
        return all(one.should_update() for one in wrappers)

    @staticmethod
    def _saved(runner) -> int | None:
        return max((hook.saved_iter or 0 for hook in runner.hooks if isinstance(hook, CheckpointHook)), default=None)

    def _stop(self, runner, meta: dict) -> None:
        savers = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
        if self._saved(runner) == meta['iter']:
            path = next(hook.last_ckpt for hook in savers if hook.saved_iter == meta['iter'])
        else:
            for hook in runner.hooks:
                if isinstance(hook, ResumeHook):
                    hook.gather(runner, meta['iter'])
            path = savers[0].save_interrupted(runner, dict(meta)) if savers else _save_alone(runner, dict(meta))
        barrier()  # else the launcher ends the process that is still writing
        runner.logger.warning(
            f'interrupted by {signal.Signals(self._stopping).name}: {path} holds iteration {meta["iter"]} of '
            f'{runner.max_iters}; go on with the same command and --resume'
        )
        self._training = False
        self._release()
        raise Interrupted(self._stopping)


def _save_alone(runner, meta: dict) -> str:
    """For runs without a hook that saves."""
    runner.save_checkpoint(runner.work_dir, INTERRUPTED, meta=meta, by_epoch=False)
    path = os.path.join(runner.work_dir, INTERRUPTED)
    if runner.rank == 0:
        name_last(runner.work_dir, path)
    return path


class _Deaf:
    """Has a worker leave the signals of its run to the run itself, and end when that ends it.

    Args:
        initialise: What the loader does in its workers anyway.
    """

    def __init__(self, initialise) -> None:
        self._initialise = initialise
        # Shared memory: a handler may run at any moment, and must not wait for a lock.
        self._over = multiprocessing.RawValue('b', 0)

    def __call__(self, worker: int) -> None:
        for name in SIGNALS:
            number = getattr(signal, name, None)
            if number is not None:
                signal.signal(number, self._obey if number == signal.SIGTERM else signal.SIG_IGN)
        if self._initialise is not None:
            self._initialise(worker)

    def end(self) -> None:
        """From here on SIGTERM is the word of the run, or of the interpreter that is about to wait for the worker."""
        self._over.value = 1

    def _obey(self, number: int, frame: FrameType | None) -> None:
        if self._over.value:
            os._exit(0)
