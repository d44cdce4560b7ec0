"""The model's buffers as they were before an accumulation window, for a step that may have to be skipped."""

import torch
from torch import Tensor, nn


class BufferKeeper:
    """Keeps the buffers of a model (BatchNorm's running statistics) until it is known whether a step is made.

    A batch that is not finite has moved them by the time that this is noticed: without this, a skipped step would leave
    a model whose training goes on and whose predictions are not numbers.
    """

    def __init__(self) -> None:
        self._model: nn.Module | None = None
        self._kept: dict[str, Tensor] | None = None

    def before_forward(self, model: nn.Module) -> None:
        """Copies the buffers, if this forward pass begins a window."""
        if self._kept is None:
            self._model = model
            self._kept = {name: buffer.clone() for name, buffer in model.named_buffers()}

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the buffers back: the step is skipped."""
        if self._kept:
            for name, buffer in self._model.named_buffers():
                buffer.copy_(self._kept[name])
        self.forget()

    def state_dict(self) -> dict[str, Tensor] | None:
        """The buffers at the begin of a window that is not finished; None where none are kept."""
        return None if self._kept is None else {name: kept.cpu() for name, kept in self._kept.items()}

    def load_state_dict(self, state: dict[str, Tensor], model: nn.Module) -> None:
        """Restores :meth:`state_dict` for a model, whose own buffers stay as they are."""
        self._model = model
        self._kept = {name: state[name].to(buffer.device) for name, buffer in model.named_buffers()}

    def forget(self) -> None:
        """The step was made."""
        self._model = self._kept = None
