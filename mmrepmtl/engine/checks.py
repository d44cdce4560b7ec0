"""Checks that a multi-task method can act on a model; each failure is one clear error."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmrepmtl.engine.capture import SharedCapture
from mmrepmtl.engine.precision import DTYPES
from mmrepmtl.methods.aggregation import Aggregator
from mmrepmtl.methods.collectives import num_processes
from mmrepmtl.methods.regularizer import Regularizer
from mmrepmtl.methods.weighting import Weighting

_COMPILED = (
    'MultiTaskOptimWrapper: the whole model is compiled, so the hooks on its shared module cannot fire; compile the '
    'shared module only (for example model.encoder = torch.compile(model.encoder)) and drop `compile` from the '
    'config'
)

_IN_FORWARD: WeakSet[nn.Module] = WeakSet()


def check_settings(
    extra_losses: object, loss_transform: object, precision: object, tasks: object, zero_loss: object
) -> None:
    """Raises ValueError for a value that a setting of the optim wrapper does not have."""
    if extra_losses not in ('error', 'add'):
        raise ValueError(f"MultiTaskOptimWrapper: extra_losses must be 'error' or 'add', got {extra_losses!r}")
    if loss_transform not in (None, 'log'):
        raise ValueError(f"MultiTaskOptimWrapper: loss_transform must be None or 'log', got {loss_transform!r}")
    if precision not in DTYPES:
        raise ValueError(f'MultiTaskOptimWrapper: precision must be one of {list(DTYPES)}, got {precision!r}')
    if zero_loss not in ('unlabelled', 'error'):
        raise ValueError(f"MultiTaskOptimWrapper: zero_loss must be 'unlabelled' or 'error', got {zero_loss!r}")
    if isinstance(tasks, str):
        raise ValueError(f'MultiTaskOptimWrapper: tasks must be a dict or a list, got the string {tasks!r}')


def check_methods(
    weighting: Weighting,
    aggregator: Aggregator | None,
    loss_transform: str | None,
    accumulative_counts: int,
    clip_grad: Mapping[str, Any] | None,
) -> None:
    """Raises ValueError if the needs that a method declares contradict the settings."""
    for method in (weighting, aggregator):
        if loss_transform == 'log' and method is not None and method.loss_transform == 'own':
            raise ValueError(
                f'MultiTaskOptimWrapper: {type(method).__name__} handles the scale of the losses itself; '
                "loss_transform='log' would be a second transform, set loss_transform=None"
            )
    if aggregator is None:
        return
    name = type(aggregator).__name__
    if accumulative_counts % aggregator.num_batches:
        raise ValueError(
            f'MultiTaskOptimWrapper: {name} takes {aggregator.num_batches} independent batches per step, which are the '
            f'micro-batches of an accumulation window; accumulative_counts={accumulative_counts} must be a multiple of '
            f'{aggregator.num_batches}'
        )
    if aggregator.returns == 'update' and clip_grad is not None:
        raise ValueError(
            f'MultiTaskOptimWrapper: {name} is an optimizer; there is no combined gradient that clip_grad could clip'
        )


def check_own_samples(model: nn.Module, tasks: list[str], aggregator: Aggregator | None) -> list[str]:
    """Returns the tasks that have a call of the shared module of their own; empty if one call serves all.

    A model says how it feeds its encoder by its attribute ``encoder_forward``: ``'shared'`` (as models without that
    attribute), ``'per_task'`` (one call for the samples of each task, in the order of the tasks), or ``'concat'`` (one
    call for the samples of all, whose rows are in its attribute ``task_slices``).

    Raises:
        ValueError: If gradients at Z are to be combined and the tasks do not share samples there.
    """
    mode = getattr(model, 'encoder_forward', 'shared')
    if mode != 'shared' and aggregator is not None and aggregator.level == 'representation':
        raise ValueError(
            f"MultiTaskOptimWrapper: {type(aggregator).__name__} at level='representation' combines the gradients of "
            f'all tasks at one Z, but with encoder_forward={mode!r} each task has samples of its own; use '
            "level='parameter' (--cfg-options optim_wrapper.aggregator.level=parameter)"
        )
    return tasks if mode == 'per_task' else []


def check_fired(capture: SharedCapture, model: nn.Module, saw_losses: bool) -> None:
    """Raises RuntimeError if a hook of a forward pass did not fire, so that no method acted."""
    if not capture.fired:
        raise RuntimeError(
            f'MultiTaskOptimWrapper: the hook on the shared module {capture.name!r} did not fire'
            f'{" for every task" if capture.tasks else ""}; the model must call that module itself (module(x), not '
            'module.forward(x))'
        )
    if not saw_losses:
        raise RuntimeError(
            f"MultiTaskOptimWrapper: the hook on {type(model).__name__} did not see forward(mode='loss'); run the "
            'model through train_step of mmengine'
        )


@contextmanager
def explain_sparse(parameters: Sequence[nn.Parameter], model: nn.Module | None) -> Iterator[None]:
    """Replaces an optimizer's error about sparse or dense gradients by one that names the parameters."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        text = str(error)
        ids = {id(p) for p in parameters if p.grad is not None and p.grad.layout is not torch.strided}
        names = [name for name, p in (model.named_parameters() if model is not None else ()) if id(p) in ids]
        if 'sparse' not in text.lower() or not (names or 'dense' in text):
            raise
        if names:
            sentence = (
                f'the gradients of {names} are sparse (nn.Embedding(sparse=True) or the like), which the optimizer or '
                'clip_grad cannot take; set sparse=False there'
            )
        else:
            sentence = (
                'the optimizer takes sparse gradients only, and an aggregator writes dense ones; use another optimizer '
                '(SGD, Adam)'
            )
        raise ValueError(f'MultiTaskOptimWrapper: {sentence}. torch says: {text}') from error


@contextmanager
def refuse_second_wrapper(model: nn.Module) -> Iterator[None]:
    """Surrounds a forward pass of the model, within which a second optim wrapper of ours is refused."""
    if model in _IN_FORWARD:
        raise RuntimeError(
            'MultiTaskOptimWrapper: two of them act on one forward pass, and each would take the losses for its own; '
            "use one with several optimizers, constructor='SeparateOptimizers' (docs/engine.md, Separate optimizers)"
        )
    _IN_FORWARD.add(model)
    try:
        yield
    finally:
        _IN_FORWARD.discard(model)


def check_has_graph(loss: Tensor) -> bool:
    """Whether a batch gives anything to learn from: a loss with a graph.

    Raises:
        ValueError: If it does not and there are other processes: their backward would wait for this one's.
    """
    if not loss.requires_grad and num_processes() > 1:
        raise ValueError(
            'MultiTaskOptimWrapper: no loss on this rank has a gradient, so that the other ranks would wait for it; '
            'return zeros that are connected to the graph (pred.sum() * 0) for tasks without a label'
        )
    return loss.requires_grad


def check_reached(model: nn.Module | None, parameters: Sequence[nn.Parameter]) -> None:
    """Raises RuntimeError if a parameter got no gradient on this rank and DistributedDataParallel waits for it.

    The other ranks then wait in their backward for good. torch raises its own error in the next forward pass of this
    rank, which may never come: this rank may wait for the others before.
    """
    if not isinstance(model, DistributedDataParallel) or model.find_unused_parameters:
        return
    if all(p.grad is not None or not p.requires_grad for p in parameters):
        return
    ignored = getattr(model, 'parameters_to_ignore', ())
    missing = [
        name
        for name, p in model.module.named_parameters()
        if p.requires_grad and p.grad is None and name not in ignored
    ]
    if missing:
        more = f' and {len(missing) - 5} more' if len(missing) > 5 else ''
        raise RuntimeError(
            f'MultiTaskOptimWrapper: {", ".join(missing[:5])}{more} got no gradient on this rank, which the other '
            'ranks wait for; set find_unused_parameters=True in the config, or let every loss depend on its parameters '
            'in every batch (0 * prediction.sum() where there is no label)'
        )


def check_regularizers(regularizers: Sequence[object]) -> None:
    """Raises ValueError for an object that is no Regularizer, or whose diagnostics mmengine would take for losses."""
    for regularizer in regularizers:
        if not isinstance(regularizer, Regularizer):
            raise ValueError(
                f'MultiTaskOptimWrapper: the regulariser {type(regularizer).__name__} must be a subclass of '
                'mmrepmtl.methods.regularizer.Regularizer, which says what the trainer asks of it'
            )
        if 'loss' in regularizer.name:
            raise ValueError(
                f'MultiTaskOptimWrapper: the regulariser name {regularizer.name!r} contains "loss", and mmengine adds '
                'every logged value whose name does to the objective; rename it'
            )


def unwrap(model: nn.Module) -> nn.Module:
    """Returns the model inside DistributedDataParallel, or the model itself.

    Raises:
        RuntimeError: For a compiled whole model, ``static_graph``, DataParallel and FSDP.
    """
    refuse_compiled(model)
    kinds = {kind.__name__ for kind in type(model).__mro__}
    for kind in ('DataParallel', 'FullyShardedDataParallel', 'FSDPModule'):
        if kind in kinds:
            raise RuntimeError(
                f'MultiTaskOptimWrapper: the model is wrapped in {kind}, where no method can see the gradients of all '
                'tasks; use DistributedDataParallel (tools/dist_train.sh)'
            )
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    if inner is not model:
        refuse_compiled(inner)
        if model.static_graph:
            raise RuntimeError(
                'MultiTaskOptimWrapper: DistributedDataParallel(static_graph=True) leaves gradients '
                'unsynchronised when the graph is traversed more than once; drop static_graph '
                '(find_unused_parameters=True is fine)'
            )
    return inner


def refuse_compiled(model: nn.Module) -> None:
    """Raises RuntimeError if the whole model, its forward or its train_step is compiled."""
    compiled = type(model).__name__ == 'OptimizedModule' or model._compiled_call_impl is not None
    steps = (getattr(model, 'train_step', None), model.forward)
    if compiled or any(hasattr(step, '_torchdynamo_orig_callable') for step in steps) or torch.compiler.is_compiling():
        raise RuntimeError(_COMPILED)


def find_shared(model: nn.Module, name: str) -> nn.Module:
    """Returns the submodule whose output is the shared representation.

    Raises:
        ValueError: If the dotted name leads to none; lists the submodules where the name goes wrong.
    """
    if not name:
        raise ValueError(
            'MultiTaskOptimWrapper: `shared` is empty; name the module whose output is the shared '
            f'representation, one of {_children(model)}'
        )
    module = model
    for depth, part in enumerate(name.split('.')):
        if part not in dict(module.named_children()):
            place = '.'.join(name.split('.')[:depth]) or type(model).__name__
            raise ValueError(
                f'MultiTaskOptimWrapper: shared={name!r} names no module: {place} has no {part!r}, it has '
                f'{_children(module)}'
            )
        module = getattr(module, part)
    return module


def _children(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_children()]
