"""Losses that must be positive, and the task's name in the error. Dimensions: T tasks."""

import torch
from torch import Tensor, nn


def task_label(method: nn.Module, index: int) -> str:
    """The task for an error: by its name where the trainer has told it (``task_names``), else by its number."""
    names = getattr(method, 'task_names', None)
    return f'task {names[index]!r}' if names else f'task {index}'


def check_positive(method: nn.Module, losses_T: Tensor, mask_T: Tensor, why: str = 'this method needs') -> None:
    """Raises ValueError with the method's and the task's name if a loss of a task in the mask is not positive.

    Args:
        method: The method that the loss belongs to.
        losses_T: (T,).
        mask_T: The tasks that are looked at, (T,) bool.
        why: Beginning of the reason; "positive losses" follows.
    """
    bad = (~(losses_T > 0) & ~torch.isnan(losses_T) & mask_T).nonzero()
    if not len(bad):
        return
    index = int(bad[0])
    value = losses_T[index].item()
    advice = (
        "a task without a label in a batch is left out by its flag ('labelled') or zero_loss='unlabelled'"
        if value == 0
        else 'use a loss that is bounded below by 0, or a method without that need'
    )
    found = f'the loss of {task_label(method, index)} is {value:g}'
    raise ValueError(f'{type(method).__name__}: {found}; {why} positive losses: {advice}')
