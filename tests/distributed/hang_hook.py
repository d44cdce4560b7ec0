"""A hook that lets the second rank hang, for runs of tools/train.py."""

import os
import signal
import threading

from mmengine.hooks import Hook

from mmrepmtl.registry import HOOKS


@HOOKS.register_module()
class HangHook(Hook):
    """Lets rank 1 hang for good before its third iteration; ``kind`` is 'wait' or 'stop' (it runs no Python then)."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        """Hangs."""
        if runner.rank == 1 and runner.iter == 2:
            if self.kind == 'stop':
                os.kill(os.getpid(), signal.SIGSTOP)
            threading.Event().wait()
