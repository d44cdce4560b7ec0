"""Guards the effects that activation checkpointing must not repeat."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

_STATISTICS = ('running_mean', 'running_var', 'num_batches_tracked')


class Recomputation:
    """Keeps the running statistics of BatchNorm as they are while checkpointing repeats a forward pass.

    Checkpointed layers run once in the forward pass and once more in the backward pass. Left alone, BatchNorm would
    take each batch into its running statistics twice.

    Args:
        module: The module whose layers may be repeated; its forward pass is the one inside :meth:`forward_pass`.
    """

    def __init__(self, module: nn.Module) -> None:
        self._running = False
        self._kept: dict[nn.Module, dict[str, Tensor | None]] = {}
        # Bound methods: a copy of the module gets hooks that are bound to the copy of this object.
        for part in module.modules():
            if isinstance(part, _NormBase) and part.track_running_stats:
                part.register_forward_pre_hook(self._before)
                # Also where checkpointing stops the repetition by an exception, once it has what it needs.
                part.register_forward_hook(self._after, always_call=True)

    @contextmanager
    def forward_pass(self) -> Iterator[None]:
        """Code in this context is the forward pass itself; anything outside is a repetition."""
        self._running = True
        try:
            yield
        finally:
            self._running = False

    def _before(self, layer: nn.Module, args: tuple) -> None:
        if self._running or not layer.training:
            return
        self._kept[layer] = {name: getattr(layer, name) for name in _STATISTICS}
        for name, value in self._kept[layer].items():
            if value is not None:
                setattr(layer, name, value.clone())

    def _after(self, layer: nn.Module, args: tuple, output: object) -> None:
        for name, value in self._kept.pop(layer, {}).items():
            setattr(layer, name, value)
