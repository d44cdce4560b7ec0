"""Bounds mmengine's log buffers, which otherwise grow for as long as a run lasts, in memory and in every checkpoint."""

import math

from mmengine.hooks import Hook

from mmrepmtl.registry import HOOKS


@HOOKS.register_module()
class LogHistoryHook(Hook):
    """Keeps the newest values of each log buffer, as many as the log's own windows may ask for.

    mmengine keeps a million values for each logged name, copies the whole buffer at each new one, and writes all of
    them into every checkpoint. The log reads the last ``window_size`` values; nothing reads the others. A window of
    ``'global'``, or one without a size, does, and then nothing is dropped.

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

    def before_run(self, runner) -> None:
        """Finds out how many values the log may ask for."""
        processor = runner.log_processor
        custom = [entry.get('window_size') for entry in processor.custom_cfg if entry.get('method_name') != 'current']
        windows = [processor.window_size, *custom]
        self._by_epoch = 'epoch' in windows
        unbounded = any(window is None or window == 'global' for window in windows)
        sizes = [window for window in windows if isinstance(window, int)]
        self._length = math.inf if unbounded else max(self.keep, *sizes)

    def before_train(self, runner) -> None:
        """Makes room for an epoch, if the log averages over it."""
        if self._by_epoch:
            self._make_room(runner.train_dataloader)

    def before_val(self, runner) -> None:
        """Makes room for a validation, whose times are averaged over all of it."""
        self._make_room(runner.val_dataloader)

    def before_test(self, runner) -> None:
        """As before a validation."""
        self._make_room(runner.test_dataloader)

    def _make_room(self, loader) -> None:
        try:
            self._length = max(self._length, len(loader))
        except TypeError:  # a stream, of which nobody knows the length
            self._length = math.inf

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Bounds the buffers that are new, or came from a checkpoint with a longer bound."""
        self._bound(runner)

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """As after a training iteration."""
        self._bound(runner)

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """As after a training iteration."""
        self._bound(runner)

    def _bound(self, runner) -> None:
        for buffer in runner.message_hub.log_scalars.values():
            if buffer.max_length > self._length:
                buffer.max_length = self._length
