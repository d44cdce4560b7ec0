"""What the setting ``precision`` means for a step: autocast, and with float16 a gradient scaler."""

from contextlib import AbstractContextManager, nullcontext

import torch

DTYPES = {'fp32': None, 'bf16': torch.bfloat16, 'fp16': torch.float16}


class Precision:
    """Autocast to ``name``; with 'fp16' also a gradient scaler, made as soon as the device is known.

    Args:
        name: 'fp32', 'bf16' or 'fp16'.
        loss_scale: Arguments of ``torch.amp.GradScaler``.

    Attributes:
        scaler: The gradient scaler, or None.
    """

    def __init__(self, name: str, loss_scale: dict | None) -> None:
        self.name, self._arguments = name, dict(loss_scale or {})
        self.scaler: torch.amp.GradScaler | None = None
        self._saved: dict | None = None

    def prepare(self, device_type: str) -> None:
        """Makes the scaler. Idempotent."""
        if self.name == 'fp16' and self.scaler is None:
            self.scaler = torch.amp.GradScaler(device_type, **self._arguments)
            if self._saved is not None:
                self.scaler.load_state_dict(self._saved)

    def autocast(self, device_type: str) -> AbstractContextManager:
        """The context that a forward pass runs in."""
        dtype = DTYPES[self.name]
        return nullcontext() if dtype is None else torch.autocast(device_type, dtype)

    @property
    def scale(self) -> float:
        """What losses are multiplied by before a backward."""
        return 1.0 if self.scaler is None else self.scaler.get_scale()

    def start(self, device: torch.device) -> None:
        """Makes the scaler's state, which it otherwise does only when it scales a loss itself."""
        if self.scaler is not None:
            self.scaler.scale(torch.zeros((), device=device))

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divides all gradients by the scale."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer, **kwargs) -> None:
        """One step of the optimizer on unscaled gradients."""
        if self.scaler is None:
            optimizer.step(**kwargs)
        else:
            self.scaler.step(optimizer, **kwargs)
            self.scaler.update()

    def back_off(self) -> None:
        """Lowers the scale after an overflow; the steps until it grows again count from here."""
        if self.scaler is not None:
            self.scaler.update(self.scale * self.scaler.get_backoff_factor())
            # With a scale of our own, update() leaves its count of steps as it was.
            self.scaler.load_state_dict(self.scaler.state_dict() | dict(_growth_tracker=0))

    def state_dict(self) -> dict | None:
        """The scaler's state, or None."""
        return None if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state: dict | None) -> None:
        """Restores :meth:`state_dict`, also before :meth:`prepare`."""
        self._saved = state
        if self.scaler is not None and state is not None:
            self.scaler.load_state_dict(state)
