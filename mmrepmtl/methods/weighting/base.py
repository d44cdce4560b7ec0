"""The base of the loss weightings. Dimensions: T tasks."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from mmrepmtl.methods.facts import Facts


class Weighting(nn.Module):
    """Base of loss weightings: T task losses become the one scalar that is minimised.

    A weighting sees the *global* losses (the mean over ranks), so that its state and its learned weights stay equal on
    all ranks. ``d scalar / d losses_T`` are the weights that it applies. The class attributes below declare what it
    needs of the trainer, which knows no method by name.

    Learned weights are ``nn.Parameter``; where the number of tasks is not known at construction they start as
    ``UninitializedParameter`` and :meth:`setup` materialises them. Everything that a resumed run needs is in
    ``state_dict()``.
    """

    #: ``'own'``: takes log losses itself or needs positive ones, so that a second log transform is refused;
    #: ``'any'``: works on losses as well as on log losses.
    loss_transform: Literal['any', 'own'] = 'any'

    #: Whether :meth:`after_step` is to be called with the losses of the same batch after the optimizer step, which
    #: costs one more forward pass.
    second_look: bool = False

    #: Whether :meth:`end_epoch` is to be called between epochs.
    per_epoch: bool = False

    #: Cells of the tables in docs/methods.md; None for a method that is in no table.
    facts: Facts | None = None

    #: Names of the tasks, for errors; the trainer sets them.
    task_names: Sequence[str] | None = None

    def setup(self, num_tasks: int) -> None:
        """Tells the number of tasks, before the first call. Idempotent."""

    def learned(self) -> list[nn.Parameter]:
        """The parameters that the run's own optimizer trains by the gradient of the scalar."""
        return list(self.parameters())

    def forward(self, losses_T: Tensor, labelled_T: Tensor | None = None, advance: bool = True) -> Tensor:
        """Combines the losses.

        Args:
            losses_T: The task losses, after the log transform if there is one, (T,).
            labelled_T: The tasks that any sample of the batch is labelled for, (T,) bool; None: all. Each method
                documents the effect of an unlabelled task on the others; its entry in ``losses_T`` is 0 and means
                nothing.
            advance: Whether this call ends an optimizer step by itself. The trainer, which knows only after the
                backward whether a step is made, always passes False and calls :meth:`end_step`; so does a loop with
                accumulation, for all but the last micro-batch. State that counts steps moves on then, and only then.

        Returns:
            The scalar to minimise.
        """
        raise NotImplementedError

    def end_step(self) -> None:
        """Ends an optimizer step that was made: that of the micro-batches since the last one. Here it does nothing."""

    def after_step(self, losses_T: Tensor, labelled_T: Tensor | None = None) -> None:
        """Takes the losses of the batch after the step, after :meth:`end_step`; only where :attr:`second_look` asks.

        Args:
            losses_T: As in :meth:`forward`; with accumulation the mean over the window's micro-batches.
            labelled_T: As in :meth:`forward`.
        """
        raise NotImplementedError

    def drop_window(self) -> None:
        """Forgets the micro-batches since the last step. Their step is skipped, because something was not finite."""

    def end_epoch(self) -> None:
        """Ends an epoch; only where :attr:`per_epoch` asks for it."""
        raise NotImplementedError
