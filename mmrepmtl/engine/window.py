"""What an accumulation window that is not finished holds, for a checkpoint that is saved inside it."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import Tensor, nn

from mmrepmtl.engine.checks import unwrap
from mmrepmtl.engine.nonfinite import NonFinite
from mmrepmtl.engine.optim_wrapper import MultiTaskOptimWrapper

#: What RepMTL reports of its last measurement.
_SHOWN = ('_values', '_squares')


def window_state(wrapper: OptimWrapper | OptimWrapperDict) -> dict[str, dict]:
    """The gradients so far of this rank and what the method has counted, as plain data and tensors.

    Args:
        wrapper: The run's; each member of a dict has a window of its own.

    Returns:
        {member: state}, without the members that are between two windows and have nothing to tell.
    """
    states = {name: _state(member) for name, member in _members(wrapper)}
    return {name: state for name, state in states.items() if state}


def _numbered(values: dict[Any, Tensor]) -> dict[Any, Tensor]:
    """A copy on the CPU whose keys are the same in each run: a key that is the identity of a tensor is not."""
    return {number if isinstance(key, int) else key: v.detach().cpu() for number, (key, v) in enumerate(values.items())}


def load_window_state(wrapper: OptimWrapper | OptimWrapperDict, states: Mapping[str, dict]) -> None:
    """Restores :func:`window_state`, after the wrapper has prepared the model.

    Raises:
        ValueError: If the window cannot be gone on with, because the method repeats its forward passes.
    """
    members = dict(_members(wrapper))
    for name, state in states.items():
        if name in members:
            _load(members[name], state)


def is_open(wrapper: OptimWrapper) -> bool:
    """Whether the last backward pass was not the last one of its window."""
    counts, done, most = wrapper._accumulative_counts, wrapper._inner_count, wrapper._max_counts
    return counts > 1 and done % counts != 0 and done != most


def _members(wrapper: OptimWrapper | OptimWrapperDict) -> list[tuple[str, OptimWrapper]]:
    apart = isinstance(wrapper, OptimWrapperDict) and not isinstance(wrapper, MultiTaskOptimWrapper)
    return list(wrapper.items()) if apart else [('', wrapper)]


def _parameters(wrapper: OptimWrapper) -> list[nn.Parameter]:
    return [p for group in wrapper.optimizer.param_groups for p in group['params']]


def _state(wrapper: OptimWrapper) -> dict:
    rows = _rows(wrapper)
    index = {id(p): i for i, p in enumerate(_parameters(wrapper))}
    # The order of the columns is that of first use, which a resumed run may see in another order.
    state: dict[str, Any] = dict(columns=[index[id(p)] for p in rows.parameters]) if rows and rows.parameters else {}
    if getattr(wrapper, '_aggregation', None) is not None and wrapper._aggregation.weights_T is not None:
        state['weights_T'] = wrapper._aggregation.weights_T.cpu()  # the log shows them until the next step
    # A regulariser shows what it measured last in the steps that it leaves out.
    shown = [
        {name: _numbered(getattr(one, name, {})) for name in _SHOWN} for one in _regularizers(wrapper)
    ]
    if any(values for one in shown for values in one.values()):
        state['shown'] = shown
    if not is_open(wrapper):
        return state
    state['grads'] = [None if p.grad is None else p.grad.detach().cpu() for p in _parameters(wrapper)]
    if getattr(wrapper, '_second_look', None) is not None:
        state['second_look'] = type(wrapper.weighting).__name__
    if getattr(wrapper, '_policy', None) is not None and wrapper._policy.found is not None:
        found = wrapper._policy.found
        state['found'] = dict(what=found.what, tasks=found.tasks, value=found.value)
    if getattr(wrapper, '_buffers', None) is not None and wrapper._buffers._kept is not None:
        state['buffers'] = {name: kept.cpu() for name, kept in wrapper._buffers._kept.items()}
    if getattr(wrapper, '_aggregation', None) is not None:
        state['aggregation'] = _aggregation_state(wrapper._aggregation, index)
    return state


def _aggregation_state(aggregation: Any, index: Mapping[int, int]) -> dict:
    window, rows = aggregation._window, aggregation.rows
    return dict(
        count=window.count,
        losses_T=window.losses_T,
        labelled_T=window.labelled_T,
        heads={t: {index[id(p)]: grad.cpu() for p, grad in held.items()} for t, held in window.heads.items()},
        before=aggregation._before,
        used=[index[key] for key in sorted(rows._used, key=index.get)],
        rows=[(batch, t, rows.buffer[batch, t].cpu()) for batch, t in sorted(rows._written)],
    )


def _load(wrapper: OptimWrapper, state: Mapping[str, Any]) -> None:
    parameters, rows = _parameters(wrapper), _rows(wrapper)
    if 'columns' in state and rows is not None and not rows.parameters:
        _load_columns(wrapper, rows, [parameters[i] for i in state['columns']])
    if 'weights_T' in state and getattr(wrapper, '_aggregation', None) is not None:
        wrapper._aggregation.weights_T = state['weights_T'].to(parameters[0].device)
    for one, shown in zip(_regularizers(wrapper), state.get('shown', []), strict=False):
        for name in _SHOWN if hasattr(one, '_values') else ():
            setattr(one, name, {key: value.to(parameters[0].device) for key, value in shown[name].items()})
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
    if 'found' in state:
        wrapper._policy.found = NonFinite(**state['found'])
    if 'buffers' in state:
        model = unwrap(wrapper._prepared)
        wrapper._buffers._model = model
        wrapper._buffers._kept = {
            name: state['buffers'][name].to(buffer.device) for name, buffer in model.named_buffers()
        }
    if 'aggregation' in state:
        _load_aggregation(wrapper._aggregation, state['aggregation'], parameters)


def _load_aggregation(aggregation: Any, state: Mapping[str, Any], parameters: Sequence[nn.Parameter]) -> None:
    window, rows, device = aggregation._window, aggregation.rows, parameters[0].device
    window.count = state['count']
    window.losses_T, window.labelled_T = _to(state['losses_T'], device), _to(state['labelled_T'], device)
    window.heads = {
        t: {parameters[i]: grad.to(device) for i, grad in held.items()} for t, held in state['heads'].items()
    }
    aggregation._before = state['before']
    rows._used = {id(parameters[i]) for i in state['used']}
    for batch, t, row in state['rows']:
        rows.buffer[batch, t] = row.to(device)
        rows._written.add((batch, t))


def _regularizers(wrapper: OptimWrapper) -> list:
    return list(getattr(wrapper, 'regularizers', []))


def _rows(wrapper: OptimWrapper) -> Any:
    aggregation = getattr(wrapper, '_aggregation', None)
    return aggregation.rows if aggregation is not None and aggregation.at_parameters else None


def _load_columns(wrapper: OptimWrapper, rows: Any, parameters: list[nn.Parameter]) -> None:
    rows.parameters, start = list(parameters), 0
    for p in parameters:
        rows._starts[id(p)] = start
        start += p.numel()
    dtype = torch.promote_types(parameters[0].dtype, torch.float32)
    shape = (rows.num_batches, len(wrapper._prefixes), start)
    rows.buffer = torch.zeros(shape, dtype=dtype, device=parameters[0].device)


def _to(value: Tensor | None, device: torch.device) -> Tensor | None:
    return None if value is None else value.to(device)
