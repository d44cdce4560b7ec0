"""The strength of a penalty by its effect: a running ratio of its gradient at Z to that of the tasks is held."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmrepmtl.methods.collectives import Ranks

#: Steps with a penalty over which the ratio is averaged.
HORIZON = 50
#: The scale is at most this many times the one that the mean ratio of the whole run would give.
MAX_GROWTH = 10.0


class TargetRatio(nn.Module):
    """Scale of a penalty whose gradient at Z is to be ``target`` times as long as that of the tasks' objective.

    Ours, not the paper's. The ratio of a step is that of the penalty at scale 1, over the samples of all micro-batches
    and processes of the step: ``r = sqrt(sum |g_penalty|^2 / sum |g_tasks|^2)``. Its running average is the mean of all
    steps so far, and after :data:`HORIZON` steps an exponential one of that horizon. The scale is ``target`` over this
    average; it holds for the next step, so that measuring costs no pass. The scale of the first step comes from its own
    ratio, see :meth:`scale_of`.

    A penalty that has nothing left to say has a ratio near 0, whose scale would amplify rounding. So the scale is at
    most :data:`MAX_GROWTH` times the one that the mean over the whole run would give.

    Args:
        target: The ratio.
    """

    mean: Tensor
    overall: Tensor
    count: Tensor

    def __init__(self, target: float) -> None:
        super().__init__()
        self.target = target
        self.group: Any = None
        # In the checkpoint, equal on all ranks.
        self.register_buffer('mean', torch.zeros(()))
        self.register_buffer('overall', torch.zeros(()))
        self.register_buffer('count', torch.zeros((), dtype=torch.long))
        self._window: Tensor | None = None
        self._known = False

    @property
    def known(self) -> bool:
        """Whether a step with a penalty was measured; asking waits for the accelerator until one was."""
        self._known = self._known or bool(self.overall > 0)
        return self._known

    def begin(self, like: Tensor, group: Any) -> None:
        """Tells that a micro-batch with a penalty follows; to be called on all ranks.

        Args:
            like: A tensor of the device and dtype of the squares.
            group: The processes that share the batch.
        """
        self.group = group
        if self._window is None:
            self._window = like.detach().new_zeros(2)

    def add(self, squares: Tensor) -> None:
        """Takes squared norms at Z of the penalty's gradient at scale 1 and of the tasks', (2,), of this process."""
        self._window = squares if self._window is None else self._window + squares

    def scale(self) -> Tensor:
        """The scale of this step, once it is :attr:`known`; a scalar."""
        return self.target / torch.maximum(self.mean, self.overall / MAX_GROWTH)

    def scale_of(self, squares: Tensor) -> Tensor:
        """The scale at which squares as of :meth:`add` have the target ratio: that of a first step; 0 without one."""
        ratio = _ratio(Ranks(self.group).sum(squares))
        return torch.where(ratio.isfinite() & (ratio > 0), self.target / ratio, 0)

    def end_step(self) -> None:
        """Averages over the step that was made; to be called on all ranks."""
        if self._window is None:
            return
        ratio, self._window = _ratio(Ranks(self.group).sum(self._window)).to(self.mean), None
        fine = ratio.isfinite()
        self.count += fine
        count = self.count.clamp(min=1)
        for average, number in ((self.mean, count.clamp(max=HORIZON)), (self.overall, count)):
            average.copy_(torch.where(fine, average + (ratio - average) / number, average))

    def drop_window(self) -> None:
        """Forgets the micro-batches since the last step, which is skipped."""
        self._window = None

    def window_state(self) -> dict[str, Tensor]:
        """The sums of an accumulation window that is not finished, of this process, on the CPU."""
        return {} if self._window is None else dict(window=self._window.cpu())

    def load_window_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores :meth:`window_state`."""
        self._window = state['window'].to(self.mean.device) if 'window' in state else None

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._known = False


def _ratio(squares: Tensor) -> Tensor:
    """The ratio of the norms; not finite where the tasks have no gradient."""
    return (squares[0] / squares[1]).sqrt()
