"""Logs how the tasks pull at the shared representation: the norms of their gradients and the cosines between them."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from torch import Tensor, nn

from mmrepmtl.engine.capture import SharedCapture
from mmrepmtl.engine.checks import find_shared, unwrap
from mmrepmtl.engine.optim_wrapper import MultiTaskOptimWrapper
from mmrepmtl.engine.task_losses import resolve_prefixes
from mmrepmtl.methods.collectives import num_processes
from mmrepmtl.registry import HOOKS


@HOOKS.register_module()
class TaskGradientsHook(Hook):
    """Measures the gradient of each task's loss at Z, for any method.

    The log gets ``task_gradients/norm/TASK`` and, for tasks that share samples, ``task_gradients/cos/TASK-TASK``. The
    losses are those that the model returns: a weight or the log changes the norms of what a method adds up, but no
    cosine. A task without a label in the batch has neither. Training is the same with and without the hook.

    A measurement costs one backward per task through the heads. In between the log repeats the last one.

    Args:
        interval: Iterations between measurements.

    Raises:
        ValueError: ``interval`` is below 1, or the optim wrapper is another one than ``MultiTaskOptimWrapper``.
    """

    priority = 'NORMAL'

    def __init__(self, interval: int = 50) -> None:
        if interval < 1:
            raise ValueError(f'TaskGradientsHook: interval={interval} must be at least 1')
        self.interval = interval
        self._handles: list[Any] = []
        self._runner: Any = None
        self._capture: SharedCapture | None = None

    def before_train(self, runner: Any) -> None:
        """Checks the optim wrapper."""
        if not isinstance(runner.optim_wrapper, MultiTaskOptimWrapper):
            raise ValueError(
                'TaskGradientsHook needs a MultiTaskOptimWrapper, which knows Z and the tasks; this run has '
                f'{type(runner.optim_wrapper).__name__}. Leave the hook out'
            )

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Places hooks for the next forward pass, before those of the optim wrapper."""
        self._remove()
        if runner.iter % self.interval:
            return
        model, wrapper = unwrap(runner.model), runner.optim_wrapper
        tasks = list(resolve_prefixes(wrapper.tasks, model))
        own_calls = tasks if getattr(model, 'encoder_forward', 'shared') == 'per_task' else []
        self._runner, self._capture = runner, SharedCapture(wrapper.shared, own_calls)
        self._handles = [
            find_shared(model, wrapper.shared).register_forward_hook(self._capture),
            model.register_forward_hook(self._measure),
        ]

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Takes the hooks away."""
        self._remove()

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._capture, self._runner = [], None, None

    def _measure(self, model: nn.Module, args: Any, outputs: Any) -> None:
        capture, runner = self._capture, self._runner
        self._remove()  # the method may repeat the forward pass after its step, which is not to be measured
        # Without losses, or without Z, the optim wrapper says what is wrong.
        if capture is None or not capture.fired or not isinstance(outputs, Mapping):
            return
        wrapper = runner.optim_wrapper
        losses = losses_of_tasks(outputs, resolve_prefixes(wrapper.tasks, model))
        with torch.autocast(capture.views[0].device.type, enabled=False):
            products_TT = gradient_products(list(losses.values()), capture.views, wrapper.precision.scale)
        if num_processes() > 1:
            # The objective is the mean over ranks, so the gradient at a rank's samples is 1 / ranks of its own loss's.
            dist.all_reduce(products_TT, group=wrapper.process_group)
            products_TT /= num_processes() ** 2
        shared = getattr(model, 'encoder_forward', 'shared') == 'shared'
        for name, value in norms_and_cosines(list(losses), products_TT, shared).items():
            runner.message_hub.update_scalar(f'train/task_gradients/{name}', value)


def losses_of_tasks(outputs: Mapping[str, Any], prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    """{task: sum of its losses} of what a model returned; a key belongs to the longest prefix that it begins with."""
    found: dict[str, Tensor] = {}
    for key, value in outputs.items():
        owners = [task for task, prefix in prefixes.items() if key.startswith(prefix)]
        if 'loss' not in key or not owners:
            continue
        task = max(owners, key=lambda name: len(prefixes[name]))
        parts = [value] if isinstance(value, Tensor) else value
        total = torch.stack([part.mean() for part in parts]).sum()
        found[task] = found[task] + total if task in found else total
    return {task: found[task] for task in prefixes if task in found}


def gradient_products(losses: Sequence[Tensor], views: Sequence[Tensor], scale: float | Tensor = 1.0) -> Tensor:
    """Inner products (T, T) of the gradients of T losses by the views of Z, in float64; the graph is kept.

    Args:
        losses: Scalars; those without a graph have the gradient 0.
        views: The tensors of Z.
        scale: Of the gradient scaler, so that float16 gradients do not vanish; the result does not hold it.
    """
    gradients = []
    for loss in losses:
        found: Sequence[Tensor | None] = [None] * len(views)
        if loss.requires_grad:
            found = torch.autograd.grad(loss * scale, views, retain_graph=True, allow_unused=True)
        gradients.append(found)
    products_TT = torch.zeros(len(losses), len(losses), dtype=torch.float64, device=views[0].device)
    for i, first in enumerate(gradients):
        for j, second in enumerate(gradients[: i + 1]):
            for a, b in zip(first, second, strict=True):
                if a is not None and b is not None:
                    products_TT[i, j] += torch.dot(a.flatten().float(), b.flatten().float()).double()
            products_TT[j, i] = products_TT[i, j]
    return products_TT / float(scale) ** 2


def norms_and_cosines(tasks: Sequence[str], products_TT: Tensor, shared: bool) -> dict[str, float]:
    """``norm/TASK`` and ``cos/TASK-TASK`` of the gradients that are neither 0 nor infinite.

    Args:
        tasks: Their names.
        products_TT: Inner products of their gradients.
        shared: Whether the tasks share samples; without, their gradients are at different samples and have no cosine.
    """
    squares = {task: float(products_TT[i, i]) for i, task in enumerate(tasks)}
    usable = [i for i, task in enumerate(tasks) if squares[task] > 0 and math.isfinite(squares[task])]
    found = {f'norm/{tasks[i]}': math.sqrt(squares[tasks[i]]) for i in usable}
    if shared:
        for i, j in combinations(usable, 2):
            norms = found[f'norm/{tasks[i]}'] * found[f'norm/{tasks[j]}']
            found[f'cos/{tasks[i]}-{tasks[j]}'] = float(products_TT[i, j]) / norms
    return found
