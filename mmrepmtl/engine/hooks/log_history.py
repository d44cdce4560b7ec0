"""Bounds mmengine's log buffers, which otherwise grow as long as a run lasts, in memory and in every checkpoint."""

import math
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmrepmtl.engine.aliases import Batch, Outputs
from mmrepmtl.registry import HOOKS


@HOOKS.register_module()
class LogHistoryHook(Hook):
    """Keeps the newest values of each log buffer, as many as the log's own windows may ask for.

    mmengine keeps a million values for each logged name, copies the whole buffer at each new value, and writes all of
    them into every checkpoint. The log reads the last ``window_size`` values only. A window of ``'global'``, or one
    without a size, reads all of them; nothing is dropped then.

    Args:
        keep: Values of each buffer that are kept at least.

    Raises:
        ValueError: If ``keep`` is below 1.
    """

    priority = 'VERY_LOW'

    def __init__(self, keep: int = 1000) -> None:
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            raise ValueError(f'LogHistoryHook: keep must be an integer of at least 1, got {keep!r}')
        self.keep = keep
        self._length: float = math.inf
        self._by_epoch = False

    def before_run(self, runner: Runner) -> None:
        """Finds out how many values the log may ask for."""
        processor = runner.log_processor
        custom = [entry.get('window_size') for entry in processor.custom_cfg if entry.get('method_name') != 'current']
        windows = [processor.window_size, *custom]
        self._by_epoch = 'epoch' in windows
        unbounded = any(window is None or window == 'global' for window in windows)
        sizes = [window for window in windows if isinstance(window, int)]
        self._length = math.inf if unbounded else max(self.keep, *sizes)

    def before_train(self, runner: Runner) -> None:
        """Makes room for an epoch, if the log averages over it."""
        if self._by_epoch:
            self._make_room(runner.train_dataloader)

    def before_val(self, runner: Runner) -> None:
        """Makes room for a validation: the log averages its times over all batches."""
        self._make_room(runner.val_dataloader)

    def before_test(self, runner: Runner) -> None:
        """Makes room for a test, as for a validation."""
        self._make_room(runner.test_dataloader)

    def _make_room(self, loader: DataLoader[Any]) -> None:
        try:
            self._length = max(self._length, len(loader))
        except TypeError:  # a stream has no length
            self._length = math.inf

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Batch = None, outputs: Outputs = None
    ) -> None:
        """Bounds the buffers that are new or come from a checkpoint with a longer bound."""
        self._bound(runner)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Batch = None, outputs: Outputs = None) -> None:
        """Bounds the buffers, as after a training iteration."""
        self._bound(runner)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Batch = None, outputs: Outputs = None
    ) -> None:
        """Bounds the buffers, as after a training iteration."""
        self._bound(runner)

    def _bound(self, runner: Runner) -> None:
        for buffer in runner.message_hub.log_scalars.values():
            if buffer.max_length > self._length:
                buffer.max_length = self._length
