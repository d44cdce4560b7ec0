"""A resumed run is the same run: random states of every rank, and log buffers as plain data."""

import json

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import HistoryBuffer

from mmrepmtl.engine.last_checkpoint import find_checkpoint
from mmrepmtl.engine.random_state import random_state, set_random_state
from mmrepmtl.engine.resumable import check_complete, check_fits
from mmrepmtl.engine.run_settings import SETTINGS, compare_settings, run_settings
from mmrepmtl.methods.regularizer import num_processes
from mmrepmtl.registry import HOOKS


def _check_checkpoint(runner, checkpoint: dict) -> None:
    """Refuses what cannot be resumed; says what differs from the run that wrote the checkpoint."""
    name = runner._load_from or 'the checkpoint'
    check_complete(checkpoint, name)
    # Text that mmengine would evaluate, to find the number of GPUs of its oldest versions.
    checkpoint['meta'].pop('config', None)
    sentences = compare_settings(runner, checkpoint, name)
    check_fits(runner, checkpoint, name)
    for sentence in sentences:
        runner.logger.warning(f'ResumeHook: {sentence}')


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
    * What the run was trained with goes into the checkpoint as JSON. A resumed run says what differs, with both values;
      what it cannot go on from (no optimizer state, other weights, another kind of loop) is refused.
    """

    priority = 'LOW'

    def __init__(self) -> None:
        self._states: list[dict] | None = None
        self._restore: dict | None = None
        self._before_val: dict | None = None

    def before_run(self, runner) -> None:
        """Finds the checkpoint of a Runner that resumes without a name, which mmengine takes from one line of text."""
        if not runner._resume or runner._load_from is not None:
            return
        notes: list[str] = []
        cfg = runner.cfg if runner.cfg.get('work_dir') else Config(dict(work_dir=runner.work_dir))
        found = find_checkpoint(cfg, notes=notes)
        if found is None:
            notes.append(f'there is no checkpoint in {runner.work_dir}, so the run starts anew')
        else:
            runner._load_from = str(found)
        for note in notes:
            runner.logger.warning(f'ResumeHook: {note}')

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Restores the log buffers; remembers the random states, if training is resumed, until it starts."""
        if runner._resume:
            _check_checkpoint(runner, checkpoint)
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
        self.gather(runner, runner.iter)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Gathers the states if a checkpoint follows this iteration."""
        due = any(
            self.every_n_train_iters(runner, hook.interval) or runner.iter + 1 == runner.max_iters
            for hook in runner.hooks
            if isinstance(hook, CheckpointHook) and not hook.by_epoch
        )
        if due:
            self.gather(runner, runner.iter + 1)

    def gather(self, runner, iterations: int) -> None:
        """Takes the states of all ranks for a checkpoint after so many iterations; to be called on every rank."""
        self._states = [None] * num_processes()
        if num_processes() == 1:
            self._states = [random_state()]
        else:
            dist.all_gather_object(self._states, random_state())

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Adds the random states and the settings of the run; writes the log buffers as tensors."""
        checkpoint[SETTINGS] = json.dumps(run_settings(runner))
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
