"""A resumed run is the same run: random states of every rank, and log buffers as plain data."""

import torch
import torch.distributed as dist
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import HistoryBuffer

from mmrepmtl.engine.random_state import random_state, set_random_state
from mmrepmtl.methods.regularizer import num_processes
from mmrepmtl.registry import HOOKS


def _plain_buffer(buffer: HistoryBuffer) -> dict:
    log, count = buffer.data
    return dict(log=torch.as_tensor(log.astype(float)), count=torch.as_tensor(count), max_length=buffer.max_length)


@HOOKS.register_module()
class ResumeHook(Hook):
    """Makes checkpoints that a run can be resumed from exactly, and loaded without running code from them.

    * The random states of every rank go into the checkpoint and are restored on resume; mmengine saves none. They are
      gathered at the end of each epoch, and after the iterations at which a checkpoint is due. Validation does not
      advance them, so that how often one validates does not change the training.
    * mmengine pickles its log buffers with bound methods, which ``torch.load`` refuses as code; here they become plain
      tensors, and buffers again on loading.
    """

    priority = 'LOW'

    def __init__(self) -> None:
        self._states: list[dict] | None = None
        self._restore: dict | None = None
        self._before_val: dict | None = None

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Restores the log buffers; remembers the random states, if training is resumed, until it starts."""
        scalars = checkpoint.get('message_hub', {}).get('log_scalars', {})
        scalars.update(
            {
                key: HistoryBuffer(value['log'].cpu().numpy(), value['count'].cpu().numpy(), value['max_length'])
                for key, value in scalars.items()
                if isinstance(value, dict)
            }
        )
        states = checkpoint.get('random_states')
        if not runner._resume:
            return
        if states is None:
            runner.logger.warning(
                'ResumeHook: the checkpoint holds no random states; the resumed run will differ from an '
                'uninterrupted one wherever it draws random numbers (dropout)'
            )
        elif len(states) != num_processes():
            runner.logger.warning(
                f'ResumeHook: the checkpoint holds the random states of {len(states)} processes, not of '
                f'{num_processes()}; they are not restored'
            )
        else:
            self._restore = states[runner.rank]

    def before_train(self, runner) -> None:
        """Restores the states, after all that building the run has drawn."""
        window = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        length = len(runner.train_dataloader)
        if window > 1 and length % window:
            runner.logger.warning(
                f'ResumeHook: accumulative_counts={window} does not divide the {length} iterations of an epoch, so a '
                'checkpoint may lie inside a window, whose gradients so far it does not hold; a run resumed from it '
                'differs slightly from an uninterrupted one'
            )
        if self._restore is not None:
            set_random_state(self._restore)
            self._restore = None

    def after_train_epoch(self, runner) -> None:
        """Gathers the states for the checkpoint of this epoch."""
        self._gather()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Gathers the states if a checkpoint follows this iteration."""
        due = any(
            self.every_n_train_iters(runner, hook.interval) or runner.iter + 1 == runner.max_iters
            for hook in runner.hooks
            if isinstance(hook, CheckpointHook) and not hook.by_epoch
        )
        if due:
            self._gather()

    def _gather(self) -> None:
        self._states = [None] * num_processes()
        if num_processes() == 1:
            self._states = [random_state()]
        else:
            dist.all_gather_object(self._states, random_state())

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Adds the random states; writes the log buffers as tensors."""
        scalars = checkpoint['message_hub']['log_scalars']
        checkpoint['message_hub']['log_scalars'] = {key: _plain_buffer(buffer) for key, buffer in scalars.items()}
        if self._states is not None:
            checkpoint['random_states'] = self._states

    def before_val(self, runner) -> None:
        """Sets the states aside for the time of a validation."""
        self._before_val = random_state()

    def after_val(self, runner) -> None:
        """Takes them back."""
        if self._before_val is not None:
            set_random_state(self._before_val)
            self._before_val = None
