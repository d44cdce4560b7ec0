"""Keeps the model's buffers as they were before an accumulation window, whose step may have to be skipped."""

import torch
from torch import Tensor, nn


class BufferKeeper:
    """Keeps the buffers of a model (BatchNorm's running statistics) until it is known whether a step is made.

    A batch that is not finite changes the buffers before anybody notices. If its step were skipped and they stayed so,
    the training would go on, and the model would predict NaN.
    """

    def __init__(self) -> None:
        self._kept: tuple[nn.Module, dict[str, Tensor]] | None = None

    def before_forward(self, model: nn.Module) -> None:
        """Copies the buffers, if this forward pass begins a window."""
        if self._kept is None:
            self._kept = model, {name: buffer.clone() for name, buffer in model.named_buffers()}

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the buffers back: the step is skipped."""
        if self._kept is not None:
            model, values = self._kept
            for name, buffer in model.named_buffers():
                buffer.copy_(values[name])
        self.forget()

    def state_dict(self) -> dict[str, Tensor] | None:
        """Returns the buffers as they were before a window that is not finished; None if none are kept."""
        return None if self._kept is None else {name: value.cpu() for name, value in self._kept[1].items()}

    def load_state_dict(self, state: dict[str, Tensor], model: nn.Module) -> None:
        """Restores :meth:`state_dict`; the model's own buffers stay as they are."""
        self._kept = model, {name: state[name].to(buffer.device) for name, buffer in model.named_buffers()}

    def forget(self) -> None:
        """Drops the copies: the step was made."""
        self._kept = None
