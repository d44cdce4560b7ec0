"""Captures the shared representation Z while the model runs, without a change to the model."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class SharedCapture:
    """Forward hook of the shared module: remembers its output and hands *identity views* of it to the heads.

    The gradient of a task's loss at a view ends there, also where Z has several levels of which the deeper are computed
    from the shallower. Of a shared module that is frozen the views are leaves, so that Z still has a gradient.

    Attributes:
        representation: What the module returned, with every differentiable tensor replaced by its view.
        views: Those views, in order.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.representation = None
        self.views: list[Tensor] = []
        self._versions: list[int] = []

    @property
    def fired(self) -> bool:
        """Whether the shared module ran."""
        return self.representation is not None

    def __call__(self, module: nn.Module, args, output):
        if self.fired:
            raise RuntimeError(
                f'MultiTaskOptimWrapper: the shared module {self.name!r} ran twice in one forward pass; its '
                'output must be computed once per batch'
            )
        self.representation = self._view(output)
        if not self.views:
            raise RuntimeError(
                f'MultiTaskOptimWrapper: the shared module {self.name!r} returned no floating-point tensor but '
                f'{type(output).__name__}'
            )
        self._versions = [view._version for view in self.views]
        return self.representation

    def _view(self, output):
        if isinstance(output, Tensor):
            if not (output.is_floating_point() and torch.is_grad_enabled()):
                return output
            view = output.view_as(output) if output.requires_grad else output.detach().requires_grad_()
            self.views.append(view)
            return view
        if isinstance(output, Mapping):
            viewed = copy.copy(output)  # of its own type, which heads may rely on
            for key, value in output.items():
                viewed[key] = self._view(value)
            return viewed
        if isinstance(output, tuple) and hasattr(output, '_fields'):
            return type(output)(*(self._view(value) for value in output))
        if isinstance(output, (list, tuple)):
            return type(output)(self._view(value) for value in output)
        return output

    def levels(self, tasks):
        """Z for a regulariser: a tensor, a list of levels, or {task: tensor} if the module returned just that."""
        output = self.representation
        if isinstance(output, Tensor) or isinstance(output, Mapping) and set(output) == set(tasks):
            return output
        return self.views

    def check_unmodified(self) -> None:
        """Raises RuntimeError if a head has written into Z, whose gradient would then be that of something else."""
        if [view._version for view in self.views] != self._versions:
            raise RuntimeError(
                f'MultiTaskOptimWrapper: the output of the shared module {self.name!r} was modified in place by '
                'a head; use the out-of-place operation there (for example ReLU(inplace=False))'
            )
