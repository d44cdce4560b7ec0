"""Checks of the arguments of RepMTL, and its warnings, each given once."""

import warnings
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

#: Below this entropy / ln T one task owns almost every position.
_COLLAPSED = 0.1
#: With fewer samples than this, BatchNorm at the entry of a head makes anchors rounding noise (1) or opposite (2).
_FEW_SAMPLES = 4


def check_arguments(
    choices: Mapping[str, tuple[str | None, Collection[str | None]]], numbers: Mapping[str, tuple[float, float]]
) -> None:
    """Raises ValueError for an argument out of its range.

    Args:
        choices: {argument: (value, allowed values)}.
        numbers: {argument: (value, least value)}.
    """
    for argument, (choice, allowed) in choices.items():
        if choice not in allowed:
            raise ValueError(f'RepMTL: {argument} must be one of {allowed}, got {choice!r}')
    for argument, (number, least) in numbers.items():
        if not number >= least:
            raise ValueError(f'RepMTL: {argument} must be at least {least}, got {number!r}')


class Watch:
    """Warns of what makes the penalties useless or harmful."""

    def __init__(self) -> None:
        self._entropy: Tensor | None = None
        self._warned: set[str] = set()

    def note_entropy(self, entropy: Tensor, share_T: Tensor) -> None:
        """Takes entropy / ln T of a call and the shares (T,) of the tasks, which :meth:`look` compares."""
        # Nobody owns anything if every saliency is zero, which is no collapse.
        self._entropy = torch.where(share_T.sum() > 0, entropy, 1)
        # Elsewhere looking at it now would wait for the accelerator; the next call or `diagnostics` does.
        if entropy.device.type == 'cpu':
            self.look()

    def look(self) -> None:
        """Warns when the entropy of the last call collapsed, once until it recovers."""
        if self._entropy is None:
            return
        entropy, self._entropy = float(self._entropy), None
        if entropy >= _COLLAPSED:
            self._warned.discard('collapse')
        else:
            self._warn(
                'collapse',
                f'entropy / ln T of the task saliency collapsed to {entropy:.3f}: one task owns '
                'almost every position. Lower lambda_tsr, or use warmup_iters, saliency_floor or '
                "through='representation'",
            )

    def look_at_samples(self, own: int, everywhere: int, gathered: bool) -> None:
        """Warns of too few samples for CSA.

        Args:
            own: Samples of this process.
            everywhere: Samples of all processes.
            gathered: Whether CSA contrasts with those of all processes.
        """
        if (everywhere if gathered else own) == 1:
            self._warn('single', 'CSA has no negatives in a batch of one sample and is 0')
        elif own < _FEW_SAMPLES:
            self._warn(
                'few',
                f'CSA on {own} samples per process: heads that begin with convolution + BatchNorm make '
                f'its anchors degenerate below {_FEW_SAMPLES} samples per BatchNorm batch',
            )

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(f'RepMTL: {message}', stacklevel=2)
