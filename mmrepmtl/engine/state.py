"""What makes a resumed run the same run: the method's signature, and the random states of every rank."""

import json
import random
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import HistoryBuffer, print_log
from torch import nn

from mmrepmtl.methods.regularizer import num_processes
from mmrepmtl.registry import HOOKS


def method_signature(
    weighting, aggregator, regularizers: Sequence, loss_transform, precision: str, accumulative_counts: int
) -> dict:
    """Everything of a method's settings that changes what is optimised, as plain data."""
    return dict(
        weighting=_plain(weighting or dict(type='EqualWeighting')),
        aggregator=_plain(aggregator),
        regularizers=[_plain(regularizer) for regularizer in regularizers],
        loss_transform=loss_transform,
        precision=precision,
        accumulative_counts=accumulative_counts,
    )


def _plain(cfg):
    if isinstance(cfg, nn.Module):
        return dict(type=type(cfg).__name__)
    if isinstance(cfg, Mapping):
        return {str(key): _plain(value) for key, value in cfg.items()}
    if isinstance(cfg, (list, tuple)):
        return [_plain(value) for value in cfg]
    return cfg.__name__ if isinstance(cfg, type) else cfg


def check_same_run(saved: dict | None, signature: dict, force: bool) -> bool:
    """Whether the method's own state can be restored from ``saved``.

    Raises:
        RuntimeError: If the method, its settings or the number of processes differ and ``force`` is not set.
    """

    if saved is None:
        differences = ['the checkpoint was not written by MultiTaskOptimWrapper']
    else:
        old = json.loads(saved['signature'])
        differences = [
            f'{key}: {old.get(key)} in the checkpoint, {signature[key]} now'
            for key in signature
            if old.get(key) != signature[key]
        ]
        if saved['world_size'] != num_processes():
            differences.append(f'number of processes: {saved["world_size"]} in the checkpoint, {num_processes()} now')
    if differences and not force:
        raise RuntimeError(
            'MultiTaskOptimWrapper: the checkpoint belongs to another run ('
            + '; '.join(differences)
            + '). Start anew with load_from, or set optim_wrapper.force_resume=True (--force-resume)'
        )
    if differences:
        print_log(
            'MultiTaskOptimWrapper: resuming a different run as forced: ' + '; '.join(differences),
            logger='current',
            level=30,
        )
    return saved is not None and all(
        old.get(key) == signature[key] for key in ('weighting', 'aggregator', 'regularizers')
    )


def random_state() -> dict:
    """The states of Python's, NumPy's and torch's generators of this process, as plain data and tensors."""
    name, keys, *rest = np.random.get_state()
    version, internal, gauss = random.getstate()
    return dict(
        python=[version, list(internal), gauss],
        numpy=[name, torch.from_numpy(keys.astype(np.int64)), *rest],
        torch=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    )


def set_random_state(state: dict) -> None:
    """Restores :func:`random_state`."""
    version, internal, gauss = state['python']
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state['numpy']
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state['torch'].cpu())
    if state['cuda'] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())


def _compare_schedules(runner, checkpoint: dict) -> None:
    """Warns where mmengine would go on with the old learning rates without a word."""
    text = checkpoint.get('meta', {}).get('cfg')
    if not text:
        return
    old = Config.fromstring(text, file_format='.py')
    for key in ('train_cfg', 'param_scheduler'):
        if old.get(key) != runner.cfg.get(key):
            runner.logger.warning(
                f'ResumeHook: {key} is {runner.cfg.get(key)} now and was {old.get(key)}; the schedule of the '
                'checkpoint goes on, and one that has ended stays ended. Use load_from to start a new '
                'schedule from these weights'
            )


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
        _compare_schedules(runner, checkpoint)
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
