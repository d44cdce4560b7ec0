from typing import Literal

import torch
from torch import Tensor, nn


class Weighting(nn.Module):
    """Base of loss weightings: T task losses become the one scalar that is minimised.

    A weighting sees the *global* losses (the mean over ranks), so that its state and its learned weights stay equal on
    all ranks. ``d scalar / d losses_T`` are the weights that it applies.

    Learned weights are ``nn.Parameter``; where the number of tasks is not known at construction they start as
    ``UninitializedParameter`` and :meth:`setup` materialises them. Everything that a resumed run needs is in
    ``state_dict()``.
    """

    #: ``'own'``: takes log losses itself or needs positive ones, so that a second log transform is refused;
    #: ``'any'``: works on losses as well as on log losses.
    loss_transform: Literal['any', 'own'] = 'any'

    def setup(self, num_tasks: int) -> None:
        """Tells the number of tasks, before the first call. Idempotent."""

    def forward(self, losses_T: Tensor) -> Tensor:
        """Returns the scalar to minimise of ``losses_T`` (T,)."""
        raise NotImplementedError


class SeededModule(nn.Module):
    """A module with its own random state, equal on all ranks and part of ``state_dict()``."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def get_extra_state(self) -> Tensor:
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        self.generator.set_state(state.cpu())
