from typing import Literal

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
        del num_tasks

    def forward(self, losses_T: Tensor, labelled_T: Tensor | None = None) -> Tensor:
        """Combines the losses.

        Args:
            losses_T: The task losses, after the log transform if there is one, (T,).
            labelled_T: Which tasks any sample of the batch is labelled for, (T,) bool; None: all. What an unlabelled
                task does to the others is documented by each method; its entry in ``losses_T`` is 0 and means nothing.

        Returns:
            The scalar to minimise.
        """
        raise NotImplementedError
