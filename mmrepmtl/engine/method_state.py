"""The state of a method in a checkpoint, and the signature that says whether a checkpoint belongs to the same run."""

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.registry import Registry
from torch import nn

from mmrepmtl.engine.aliases import State
from mmrepmtl.methods.collectives import num_processes
from mmrepmtl.registry import AGGREGATORS, REGULARIZERS, WEIGHTINGS
from mmrepmtl.utils.config_types import find_type, plain_data, type_name

if TYPE_CHECKING:
    from mmrepmtl.engine.optim_wrapper import MultiTaskOptimWrapper

#: A method as a setting has it: its config, or the object.
Method: TypeAlias = Mapping[str, Any] | nn.Module


def method_signature(
    weighting: Method, aggregator: Method | None, regularizers: Sequence[Method], **settings: Any
) -> State:
    """Returns all settings of a method that change the objective, with all defaults filled in, as plain data.

    Args:
        weighting: Config or object of the loss weighting.
        aggregator: Config or object of the aggregator, or None.
        regularizers: Configs or objects of the regularisers.
        **settings: The optim wrapper's own.
    """
    return dict(
        weighting=_with_defaults(weighting, WEIGHTINGS),
        aggregator=_with_defaults(aggregator, AGGREGATORS),
        regularizers=[_with_defaults(regularizer, REGULARIZERS) for regularizer in regularizers],
        **{key: _plain(value) for key, value in settings.items()},
    )


def _with_defaults(cfg: Method | None, registry: Registry) -> Any:
    """Fills the arguments that a method's config does not give in with their defaults."""
    if not isinstance(cfg, Mapping):
        return _plain(cfg)
    kind = find_type(cfg['type'], registry)
    if kind is None:
        return _plain(cfg)  # the error comes when it is built
    arguments = {key: value for key, value in cfg.items() if key not in ('type', '_scope_')}
    try:
        bound = inspect.signature(kind).bind(**arguments)
    except TypeError:
        return _plain(cfg)  # as above
    bound.apply_defaults()
    return dict(type=type_name(kind), **_plain(bound.arguments))


def _plain(cfg: Any) -> Any:
    if isinstance(cfg, nn.Module):
        scalars = {key: value for key, value in vars(cfg).items() if isinstance(value, (bool, int, float, str))}
        return dict(type=type(cfg).__name__, **{key: v for key, v in scalars.items() if not key.startswith('_')})
    if isinstance(cfg, Mapping):
        items = ((key, value) for key, value in cfg.items() if key != '_scope_')
        return {str(key): type_name(value) if key == 'type' else _plain(value) for key, value in items}
    if isinstance(cfg, (list, tuple)):
        return [_plain(value) for value in cfg]
    return plain_data(cfg)


#: Settings that older checkpoints do not hold.
NEWER_SETTINGS = ('zero_loss',)


class OtherRun(ValueError, RuntimeError):
    """A checkpoint that belongs to another run; a ValueError, which the tools show as one line."""


def check_same_run(saved: State | None, signature: State, force: bool) -> bool:
    """Whether the method's own state can be restored from ``saved``.

    Args:
        saved: The ``'multi_task'`` part of the checkpoint, as :func:`method_state` makes it; None if it has none.
        signature: That of this run, from :func:`method_signature`.
        force: Warn of differences instead of refusing them.

    Raises:
        OtherRun: If the method, its settings or the number of processes differ and ``force`` is not set.
    """
    old: State = {}
    if saved is None:
        differences = ['the checkpoint was not written by MultiTaskOptimWrapper']
    else:
        try:
            old, world_size = dict(json.loads(saved['signature'])), saved['world_size']
            # A newer argument of a regulariser has a default that is what the regulariser did before.
            old['regularizers'] = [_with_defaults(regularizer, REGULARIZERS) for regularizer in old['regularizers']]
        except (KeyError, TypeError, ValueError) as error:
            raise OtherRun(f'MultiTaskOptimWrapper: multi_task of the checkpoint is damaged ({error!r})') from None
        # A setting that is newer than the checkpoint had no other value then.
        old = {key: signature[key] for key in NEWER_SETTINGS if key in signature} | old
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


def add_learned_group(wrapper: OptimWrapper, parameters: list[nn.Parameter], lr: float | None) -> None:
    """Adds the weights that a method learns to the wrapper's optimizer, as a parameter group without decay.

    Args:
        wrapper: The optim wrapper whose optimizer trains them.
        parameters: The weights.
        lr: Their learning rate; None: that of the optimizer.
    """
    defaults = wrapper.optimizer.defaults
    group = dict(params=parameters, lr=defaults['lr'] if lr is None else lr, weight_decay=0.0)
    wrapper.optimizer.add_param_group(group)
    # mmengine reads the base learning rate from here as soon as there are several groups.
    if wrapper.base_param_settings is None:
        wrapper.base_param_settings = dict(params=torch.tensor([0.0]), **defaults)


def without_learned(state_dict: State, optimizer: torch.optim.Optimizer, count: int, has_learned: bool) -> State:
    """Reduces an optimizer's state to that of the model: the learned weights were those of another method.

    Args:
        state_dict: The state that was saved.
        optimizer: The optimizer that it is loaded into.
        count: Number of the model's parameters, which come first in both.
        has_learned: Whether the optimizer's last group holds learned weights.
    """
    groups = len(optimizer.param_groups) - has_learned
    return dict(
        state_dict,
        param_groups=state_dict['param_groups'][:groups] + optimizer.state_dict()['param_groups'][groups:],
        state={index: value for index, value in state_dict['state'].items() if index < count},
    )


def method_state(wrapper: 'MultiTaskOptimWrapper') -> State:
    """Returns the part of a MultiTaskOptimWrapper's state that is the method's."""
    aggregator = wrapper.aggregator
    return dict(
        signature=json.dumps(wrapper.signature, sort_keys=True),
        world_size=num_processes(),
        tasks=list(wrapper.prefixes),
        weighting=wrapper.weighting.state_dict(),
        aggregator=aggregator.state_dict() if aggregator is not None else {},
        regularizers=[regularizer.state_dict() for regularizer in wrapper.regularizers],
        epoch=wrapper.epochs.epoch,
        skipped=wrapper.policy.state_dict(),
    )


def load_method_state(wrapper: 'MultiTaskOptimWrapper', saved: State) -> None:
    """Restores :func:`method_state` of the same run."""
    wrapper.weighting.load_state_dict(saved['weighting'])
    if wrapper.aggregator is not None:
        wrapper.aggregator.load_state_dict(saved['aggregator'])
    for regularizer, state in zip(wrapper.regularizers, saved['regularizers'], strict=True):
        regularizer.load_state_dict(state)
    wrapper.epochs.epoch = saved.get('epoch')
    if 'skipped' in saved:
        wrapper.policy.load_state_dict(saved['skipped'])


def load_wrapper_state(wrapper: 'MultiTaskOptimWrapper', state_dict: State) -> None:
    """Restores the ``state_dict()`` of a MultiTaskOptimWrapper, and empties it; raises as :func:`check_same_run`."""
    scaler, own = state_dict.pop('loss_scaler', None), state_dict.pop('multi_task', None)
    same = check_same_run(own, wrapper.signature, wrapper.force_resume)
    if own is not None and own['tasks'] and not wrapper.prefixes:
        wrapper.setup_methods({task: '' for task in own['tasks']})
    if same:
        load_method_state(wrapper, own)
    wrapper.precision.load_state_dict(scaler)
    wrapper.load_optimizer(state_dict, same)
