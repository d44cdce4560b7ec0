"""What makes a resumed run the same run: the method's signature, and the random states of every rank."""

import inspect
import json
import random
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import HistoryBuffer, print_log
from mmengine.registry import Registry
from torch import nn

from mmrepmtl.methods.regularizer import num_processes
from mmrepmtl.registry import AGGREGATORS, HOOKS, REGULARIZERS, WEIGHTINGS


def method_signature(weighting, aggregator, regularizers: Sequence, **settings) -> dict:
    """Everything of a method that changes what is optimised, with all defaults filled in, as plain data.

    Args:
        weighting: Config or object of the loss weighting.
        aggregator: That of the aggregator, or None.
        regularizers: Those of the regularisers.
        **settings: The optim wrapper's own.
    """
    return dict(
        weighting=_filled(weighting, WEIGHTINGS),
        aggregator=_filled(aggregator, AGGREGATORS),
        regularizers=[_filled(regularizer, REGULARIZERS) for regularizer in regularizers],
        **{key: _plain(value) for key, value in settings.items()},
    )


def _filled(cfg, registry: Registry):
    """A method's config with the arguments that it leaves to their defaults."""
    if not isinstance(cfg, Mapping):
        return _plain(cfg)
    kind = registry.get(cfg['type']) if isinstance(cfg['type'], str) else cfg['type']
    if kind is None:
        return _plain(cfg)  # building it says what is wrong
    arguments = {key: value for key, value in cfg.items() if key != 'type'}
    bound = inspect.signature(kind).bind(**arguments)
    bound.apply_defaults()
    return dict(type=kind.__name__, **_plain(bound.arguments))


def _plain(cfg):
    if isinstance(cfg, nn.Module):
        scalars = {key: value for key, value in vars(cfg).items() if isinstance(value, (bool, int, float, str))}
        return dict(type=type(cfg).__name__, **{key: v for key, v in scalars.items() if not key.startswith('_')})
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


def add_learned_group(wrapper, parameters: list[nn.Parameter], lr: float | None) -> None:
    """Gives what a method learns a parameter group of its own, without decay, to the wrapper's optimizer."""
    defaults = wrapper.optimizer.defaults
    group = dict(params=parameters, lr=defaults['lr'] if lr is None else lr, weight_decay=0.0)
    wrapper.optimizer.add_param_group(group)
    # mmengine reads the base learning rate from here as soon as there are several groups.
    if wrapper.base_param_settings is None:
        wrapper.base_param_settings = dict(params=torch.tensor([0.0]), **defaults)


def without_learned(state_dict: dict, optimizer: torch.optim.Optimizer, count: int, has_learned: bool) -> dict:
    """The optimizer's state of the model alone: that of another method's learned weights means nothing here.

    Args:
        state_dict: What was saved.
        optimizer: What it is loaded into.
        count: Number of the model's parameters, which come first in both.
        has_learned: Whether the optimizer's last group holds learned weights.
    """
    groups = len(optimizer.param_groups) - has_learned
    return dict(
        state_dict,
        param_groups=state_dict['param_groups'][:groups] + optimizer.state_dict()['param_groups'][groups:],
        state={index: value for index, value in state_dict['state'].items() if index < count},
    )


def method_state(wrapper) -> dict:
    """What a MultiTaskOptimWrapper adds to the optimizer's state."""
    aggregator = wrapper.aggregator
    return dict(
        signature=json.dumps(wrapper.signature, sort_keys=True),
        world_size=num_processes(),
        tasks=list(wrapper._prefixes or {}),
        weighting=wrapper.weighting.state_dict(),
        aggregator=aggregator.state_dict() if aggregator is not None else {},
        regularizers=[regularizer.state_dict() for regularizer in wrapper.regularizers],
        epoch=wrapper._epochs.epoch,
        skipped=wrapper._policy.state_dict(),
    )


def load_method_state(wrapper, saved: dict) -> None:
    """Restores :func:`method_state` of the same run."""
    wrapper.weighting.load_state_dict(saved['weighting'])
    if wrapper.aggregator is not None:
        wrapper.aggregator.load_state_dict(saved['aggregator'])
    for regularizer, state in zip(wrapper.regularizers, saved['regularizers'], strict=True):
        regularizer.load_state_dict(state)
    wrapper._epochs.epoch = saved.get('epoch')
    if 'skipped' in saved:
        wrapper._policy.load_state_dict(saved['skipped'])


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
