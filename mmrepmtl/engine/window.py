"""The state of an accumulation window that is not finished, for a checkpoint that is saved inside it."""

import logging
from collections.abc import Mapping

from mmengine.logging import print_log
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn

from mmrepmtl.engine.aliases import State
from mmrepmtl.engine.checks import unwrap
from mmrepmtl.engine.nonfinite import NonFinite
from mmrepmtl.engine.optim_wrapper import MultiTaskOptimWrapper


def window_state(wrapper: OptimWrapper | OptimWrapperDict) -> dict[str, State]:
    """Returns this rank's gradients so far and the method's sums, as plain data and tensors.

    Args:
        wrapper: The run's; each member of a dict has a window of its own.

    Returns:
        {member: state}, without the members that are between two windows and have no state.
    """
    states = {name: _state(member) for name, member in _members(wrapper)}
    return {name: state for name, state in states.items() if state}


def load_window_state(wrapper: OptimWrapper | OptimWrapperDict, states: Mapping[str, State]) -> None:
    """Restores :func:`window_state`, after the wrapper has prepared the model.

    Raises:
        ValueError: If this window cannot be continued, because the method repeats its forward passes.
    """
    members = dict(_members(wrapper))
    for name, state in states.items():
        if name in members:
            _load(members[name], state)


def is_open(wrapper: OptimWrapper) -> bool:
    """Whether the last backward pass was not the last one of its window."""
    return not bool(wrapper.should_update())


def _members(wrapper: OptimWrapper | OptimWrapperDict) -> list[tuple[str, OptimWrapper]]:
    separate = isinstance(wrapper, OptimWrapperDict) and not isinstance(wrapper, MultiTaskOptimWrapper)
    return list(wrapper.items()) if separate else [('', wrapper)]


def _parameters(wrapper: OptimWrapper) -> list[nn.Parameter]:
    return [p for group in wrapper.optimizer.param_groups for p in group['params']]


def _state(wrapper: OptimWrapper) -> State:
    parameters = _parameters(wrapper)
    grads = [None if p.grad is None else p.grad.detach().cpu() for p in parameters] if is_open(wrapper) else None
    if not isinstance(wrapper, MultiTaskOptimWrapper):
        return {} if grads is None else dict(grads=grads)
    index = {id(p): i for i, p in enumerate(parameters)}
    state = {} if wrapper.level is None else wrapper.level.lasting_state(index)
    # In the steps that a regulariser leaves out, the log shows its last measurement.
    shown = [regularizer.shown_state() for regularizer in wrapper.regularizers]
    if any(shown):
        state['shown'] = shown
    if grads is None:
        return state
    state['grads'] = grads
    if wrapper.second_look is not None:
        state['second_look'] = type(wrapper.weighting).__name__
    if (found := wrapper.policy.found) is not None:
        state['found'] = dict(what=found.what, tasks=found.tasks, value=found.value)
    if (buffers := wrapper.buffers.state_dict()) is not None:
        state['buffers'] = buffers
    if wrapper.level is not None:
        state['aggregation'] = wrapper.level.window_state(index)
    return state


def _load(wrapper: OptimWrapper, state: State) -> None:
    parameters = _parameters(wrapper)
    level = wrapper.level if isinstance(wrapper, MultiTaskOptimWrapper) else None
    if level is not None:
        level.load_lasting_state(state, parameters, len(wrapper.prefixes))
    if 'shown' in state:
        for regularizer, shown in zip(wrapper.regularizers, state['shown'], strict=False):
            regularizer.load_shown_state(shown)
    if 'grads' not in state:
        return
    if not is_open(wrapper):
        print_log(
            'the checkpoint was saved inside an accumulation window, and this run, with other accumulative_counts or '
            'max_iters, is between two windows: the gradients of that window are dropped',
            logger='current',
            level=logging.WARNING,
        )
        return
    if 'second_look' in state:
        raise ValueError(
            f'the checkpoint was saved inside an accumulation window of {state["second_look"]}, which repeats the '
            'forward passes of the window after the step and needs their batches; resume from a checkpoint between two '
            'windows, and save them every so many iterations that accumulative_counts divides'
        )
    for p, grad in zip(parameters, state['grads'], strict=True):
        p.grad = None if grad is None else grad.to(p.device)
    if not isinstance(wrapper, MultiTaskOptimWrapper):
        return
    if 'found' in state:
        wrapper.policy.found = NonFinite(**state['found'])
    if 'buffers' in state:
        if wrapper.prepared is None:
            raise RuntimeError('load_window_state: the optim wrapper has not prepared a model yet')
        wrapper.buffers.load_state_dict(state['buffers'], unwrap(wrapper.prepared))
    if level is not None and 'aggregation' in state:
        level.load_window_state(state['aggregation'], parameters)
