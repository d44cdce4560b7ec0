"""The state of a method in a checkpoint, and the signature that says whether a checkpoint belongs to the same run."""

import inspect
import json
from collections.abc import Mapping, Sequence

import torch
from mmengine.logging import print_log
from mmengine.registry import Registry
from torch import nn

from mmrepmtl.methods.collectives import num_processes
from mmrepmtl.registry import AGGREGATORS, REGULARIZERS, WEIGHTINGS
from mmrepmtl.utils.config_types import find_type, plain_data, type_name


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
    kind = find_type(cfg['type'], registry)
    if kind is None:
        return _plain(cfg)  # building it says what is wrong
    arguments = {key: value for key, value in cfg.items() if key not in ('type', '_scope_')}
    try:
        bound = inspect.signature(kind).bind(**arguments)
    except TypeError:
        return _plain(cfg)  # as above
    bound.apply_defaults()
    return dict(type=type_name(kind), **_plain(bound.arguments))


def _plain(cfg):
    if isinstance(cfg, nn.Module):
        scalars = {key: value for key, value in vars(cfg).items() if isinstance(value, (bool, int, float, str))}
        return dict(type=type(cfg).__name__, **{key: v for key, v in scalars.items() if not key.startswith('_')})
    if isinstance(cfg, Mapping):
        items = ((key, value) for key, value in cfg.items() if key != '_scope_')
        return {str(key): type_name(value) if key == 'type' else _plain(value) for key, value in items}
    if isinstance(cfg, (list, tuple)):
        return [_plain(value) for value in cfg]
    return plain_data(cfg)


#: Settings that older checkpoints do not tell.
YOUNGER = ('zero_loss',)


class OtherRun(ValueError, RuntimeError):
    """A checkpoint that belongs to another run; a ValueError, which the tools say in one line."""


def check_same_run(saved: dict | None, signature: dict, force: bool) -> bool:
    """Whether the method's own state can be restored from ``saved``.

    Raises:
        OtherRun: If the method, its settings or the number of processes differ and ``force`` is not set.
    """
    if saved is None:
        differences = ['the checkpoint was not written by MultiTaskOptimWrapper']
    else:
        try:
            old, world_size = dict(json.loads(saved['signature'])), saved['world_size']
            # A younger argument of a regulariser has a default that is what the regulariser did before.
            old['regularizers'] = [_filled(regularizer, REGULARIZERS) for regularizer in old['regularizers']]
        except (KeyError, TypeError, ValueError) as error:
            raise OtherRun(f'MultiTaskOptimWrapper: multi_task of the checkpoint is damaged ({error!r})') from None
        # A setting that is younger than the checkpoint had no other value then.
        old = {key: signature[key] for key in YOUNGER if key in signature} | old
        differences = [
            f'{key}: {old.get(key)} in the checkpoint, {signature[key]} now'
            for key in signature
            if old.get(key) != signature[key]
        ]
        if world_size != num_processes():
            differences.append(f'number of processes: {world_size} in the checkpoint, {num_processes()} now')
    if differences and not force:
        raise OtherRun(
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
        tasks=list(wrapper.prefixes or {}),
        weighting=wrapper.weighting.state_dict(),
        aggregator=aggregator.state_dict() if aggregator is not None else {},
        regularizers=[regularizer.state_dict() for regularizer in wrapper.regularizers],
        epoch=wrapper.epochs.epoch,
        skipped=wrapper.policy.state_dict(),
    )


def load_method_state(wrapper, saved: dict) -> None:
    """Restores :func:`method_state` of the same run."""
    wrapper.weighting.load_state_dict(saved['weighting'])
    if wrapper.aggregator is not None:
        wrapper.aggregator.load_state_dict(saved['aggregator'])
    for regularizer, state in zip(wrapper.regularizers, saved['regularizers'], strict=True):
        regularizer.load_state_dict(state)
    wrapper.epochs.epoch = saved.get('epoch')
    if 'skipped' in saved:
        wrapper.policy.load_state_dict(saved['skipped'])


def load_wrapper_state(wrapper, state_dict: dict) -> None:
    """Restores the ``state_dict()`` of a MultiTaskOptimWrapper, which is changed; raises as :func:`check_same_run`."""
    scaler, own = state_dict.pop('loss_scaler', None), state_dict.pop('multi_task', None)
    same = check_same_run(own, wrapper.signature, wrapper.force_resume)
    if own is not None and own['tasks'] and wrapper.prefixes is None:
        wrapper.setup_methods({task: '' for task in own['tasks']})
    if same:
        load_method_state(wrapper, own)
    wrapper.precision.load_state_dict(scaler)
    wrapper.load_optimizer(state_dict, same)
