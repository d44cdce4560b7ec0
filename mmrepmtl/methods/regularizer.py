from collections.abc import Mapping

from torch import Tensor, nn


class Regularizer(nn.Module):
    """Base of penalties on the shared representation, added to the objective after weighting and aggregation.

    ``forward`` returns its terms already multiplied by their weights, as a dict of scalars; with several processes the
    *mean over ranks* of the terms and of their gradients is the term of the concatenated batch, which is the
    convention of DistributedDataParallel. ``diagnostics`` holds plain floats of the last call for the log.
    """

    #: Prefix of the diagnostics in the log.
    name: str = 'regularizer'
    #: {task: its rows of Z} where one tensor holds the samples of tasks that do not share them; set before each call.
    slices: Mapping[str, slice] | None = None

    def forward(self, losses: Mapping[str, Tensor], representation, *, scale: float | Tensor = 1.0,
                advance: bool = True, task_weights: Tensor | None = None) -> dict[str, Tensor]:
        """Computes the penalty.

        Args:
            losses: {task: scalar loss}, attached to the graph, not transformed, unweighted, in the order of the tasks.
                Tasks that no sample of the global batch is labelled for are absent.
            representation: The shared representation that the losses were computed from: a tensor, a list of them
                (several levels) or {task: tensor} (tasks that do not share samples).
            scale: The losses are multiplied by it before they are differentiated (float16; the result is invariant).
            advance: Whether this call ends an optimizer step by itself. The trainer always passes False and calls
                :meth:`end_step` once the step is made.
            task_weights: (T,) factor of each task's transformed loss in the objective; only used by diagnostics.
        """
        raise NotImplementedError

    def end_step(self) -> None:
        """Counts an optimizer step that was made, with or without a label in its batch. Here it does nothing."""

    @property
    def gradient_squares(self) -> Tensor | None:
        """Squared norms at Z of the penalty's gradient and of the tasks', (2,), after a backward that was measured."""
        return None

    @property
    def diagnostics(self) -> dict[str, float]:
        """Name -> value of the last call."""
        return {}
