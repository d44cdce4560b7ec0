"""Carries out the setting ``precision``: autocast, and with float16 a gradient scaler."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from mmrepmtl.engine.aliases import State

DTYPES = {'fp32': None, 'bf16': torch.bfloat16, 'fp16': torch.float16}


class Precision:
    """Autocast to ``name``; with 'fp16' also a gradient scaler, made as soon as the device is known.

    Args:
        name: 'fp32', 'bf16' or 'fp16'.
        loss_scale: Arguments of ``torch.amp.GradScaler``.

    Attributes:
        scaler: The gradient scaler, or None.
    """

    def __init__(self, name: str, loss_scale: dict[str, Any] | None) -> None:
        self.name, self._arguments = name, dict(loss_scale or {})
        self.scaler: torch.amp.GradScaler | None = None
        self._saved: State | None = None

    def prepare(self, device_type: str) -> None:
        """Makes the scaler. Idempotent."""
        if self.name == 'fp16' and self.scaler is None:
            self.scaler = torch.amp.GradScaler(device_type, **self._arguments)
            if self._saved is not None:
                self.scaler.load_state_dict(self._saved)

    def autocast(self, device_type: str) -> AbstractContextManager[Any]:
        """Returns the context that a forward pass runs in."""
        dtype = DTYPES[self.name]
        return nullcontext() if dtype is None else torch.autocast(device_type, dtype)

    @property
    def scale(self) -> float:
        """The factor of the losses before a backward, 1 without a scaler."""
        return 1.0 if self.scaler is None else self.scaler.get_scale()

    def make_scaler_state(self, device: torch.device) -> None:
        """Makes the scaler's state. torch makes it when the scaler scales a loss, and here the wrapper scales them."""
        if self.scaler is not None:
            self.scaler.scale(torch.zeros((), device=device))

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divides all gradients by the scale."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer, **kwargs: Any) -> None:
        """Makes a step of the optimizer; the gradients are unscaled already."""
        if self.scaler is None:
            optimizer.step(**kwargs)
        else:
            self.scaler.step(optimizer, **kwargs)
            self.scaler.update()

    def back_off(self) -> None:
        """Lowers the scale after an overflow, and starts to count the steps anew after which it grows again."""
        if self.scaler is not None:
            self.scaler.update(self.scale * self.scaler.get_backoff_factor())
            # With a scale of our own, update() leaves its count of steps as it was.
            self.scaler.load_state_dict(self.scaler.state_dict() | dict(_growth_tracker=0))

    def state_dict(self) -> State | None:
        """The scaler's state, or None."""
        return None if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state: State | None) -> None:
        """Restores :meth:`state_dict`; before :meth:`prepare` too."""
        self._saved = state
        if self.scaler is not None and state is not None:
            self.scaler.load_state_dict(state)
