"""Captures the shared representation Z while the model runs, without a change to the model."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmrepmtl.engine.aliases import Representation
from mmrepmtl.methods.aggregation import Aggregator, GramianAggregator


class SharedCapture:
    """Forward hook of the shared module: remembers its output and hands *identity views* of it to the heads.

    The gradient of a task's loss at a view ends at that view, even if Z has several levels and the deeper ones are
    computed from the shallower ones. The views of a frozen shared module are leaves, so that Z still has a gradient.

    Args:
        name: Name of the module, for errors.
        tasks: Names of the tasks whose samples go through the module in calls of their own, in the order of the calls;
            empty if one call serves all.

    Attributes:
        representation: The output of the module, with every differentiable tensor replaced by its view; {task: output}
            if the tasks have calls of their own.
        views: Those views, in order.
    """

    def __init__(self, name: str, tasks: Sequence[str] = ()) -> None:
        self.name, self.tasks = name, list(tasks)
        self.representation: Any = None
        self._calls = 0
        self.views: list[Tensor] = []
        self._versions: list[int] = []
        self._attached = False

    @property
    def fired(self) -> bool:
        """Whether the shared module ran, for every task that has a call of its own."""
        return self._calls == max(len(self.tasks), 1)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Replaces the output of the module by views; as a forward hook of torch.

        Raises:
            RuntimeError: If the module ran too often, or if its output has no floating-point tensor, no gradient, a
                complex tensor or one of inference mode.
        """
        if self.fired:
            raise RuntimeError(
                f'MultiTaskOptimWrapper: the shared module {self.name!r} ran twice in one forward pass; its '
                'output must be computed once per batch'
                if not self.tasks
                else f'MultiTaskOptimWrapper: the shared module {self.name!r} ran more than once for each of the '
                f'{len(self.tasks)} tasks'
            )
        before, self._attached = len(self.views), False
        # A frozen module may run under no_grad; Z needs a gradient all the same.
        with torch.enable_grad():
            viewed = self._view(output)
        self._check(module, output, len(self.views) > before)
        if self.tasks:
            self.representation = (self.representation or {}) | {self.tasks[self._calls]: viewed}
        else:
            self.representation = viewed
        self._calls += 1
        self._versions += [view._version for view in self.views[before:]]
        return viewed

    def _check(self, module: nn.Module, output: Any, found: bool) -> None:
        """Raises RuntimeError if the output holds no tensor to differentiate by, or cannot train the module."""
        if not found:
            raise RuntimeError(
                f'MultiTaskOptimWrapper: the shared module {self.name!r} returned no floating-point tensor but '
                f'{_kind(output)}'
            )
        if not self._attached and any(p.requires_grad for p in module.parameters()):
            raise RuntimeError(
                f'MultiTaskOptimWrapper: the output of the shared module {self.name!r} has no gradient, so its '
                'trainable parameters would never learn; it runs under torch.no_grad(), is detached, or uses '
                're-entrant checkpointing on inputs that need no gradient. Take that away (for checkpoint: '
                'use_reentrant=False), or freeze the module with requires_grad_(False)'
            )

    def _view(self, output: Any) -> Any:
        """Replaces the floating-point tensors of an output, however nested, by views, which it collects."""
        if isinstance(output, Tensor):
            if output.is_complex():
                raise RuntimeError(
                    f'MultiTaskOptimWrapper: the shared module {self.name!r} returned a complex tensor; return its '
                    'real and imaginary parts (torch.view_as_real) or its magnitude'
                )
            if not output.is_floating_point():
                return output
            if output.is_inference():
                raise RuntimeError(
                    f'MultiTaskOptimWrapper: the shared module {self.name!r} ran under torch.inference_mode(), whose '
                    'tensors no head can learn from; use torch.no_grad() with a frozen module, or neither'
                )
            self._attached |= output.requires_grad
            view = output.view_as(output) if output.requires_grad else output.detach().requires_grad_()
            self.views.append(view)
            return view
        if isinstance(output, Mapping):
            viewed: Any = copy.copy(output)  # keeps the type, which heads may rely on
            for key, value in output.items():
                viewed[key] = self._view(value)
            return viewed
        if isinstance(output, tuple) and hasattr(output, '_fields'):
            return type(output)(*(self._view(value) for value in output))
        if isinstance(output, (list, tuple)):
            return type(output)(self._view(value) for value in output)
        return output

    def levels(self, tasks: Sequence[str] | Mapping[str, Any]) -> Representation:
        """Returns Z for a regulariser: a tensor, {task: tensor} if the module returned that, else a list of levels."""
        output: Representation = self.representation
        if isinstance(output, Tensor) or isinstance(output, Mapping) and set(output) == set(tasks):
            return output
        return self.views

    def facts(self, aggregator: Aggregator | None) -> dict[str, str]:
        """Returns the facts about Z that have to be equal on all ranks: {description: value}.

        Samples and sizes may differ, unless ``aggregator`` sums the gradients at Z themselves over ranks.
        """
        whole = aggregator is not None and aggregator.level == 'representation'
        whole = whole and not isinstance(aggregator, GramianAggregator)
        shapes = [tuple(view.shape[1:]) if whole else f'{view.dim()} dimensions' for view in self.views]
        return {'Z': ', '.join(f'{shape} {view.dtype}' for shape, view in zip(shapes, self.views, strict=True))}

    def check_unmodified(self) -> None:
        """Raises RuntimeError if a head has written into Z: its gradient would then be that of the new values."""
        if [view._version for view in self.views] != self._versions:
            raise RuntimeError(
                f'MultiTaskOptimWrapper: the output of the shared module {self.name!r} was modified in place by '
                'a head; use the out-of-place operation there (for example ReLU(inplace=False))'
            )


def _kind(output: object) -> str:
    return f'a tensor of {output.dtype}' if isinstance(output, Tensor) else type(output).__name__
