"""The contract of a penalty on the shared representation: what it is told, and what it tells the trainer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mmrepmtl.methods.facts import Facts
from mmrepmtl.methods.saliency import Representation


@dataclass(frozen=True, eq=False)
class RegularizerContext:
    """The facts about a step that a regulariser is told.

    The defaults are those of a plain training loop. :class:`~mmrepmtl.engine.MultiTaskOptimWrapper` fills all fields.

    Args:
        scale: Gradient scaler's scale (float16), else 1. A regulariser multiplies the losses by it before it
            differentiates them at Z, so that small gradients do not vanish, and divides its result by it. It does not
            multiply its terms: the trainer scales the whole objective.
        backward_scale: Factor of the objective in the final backward beyond ``scale``: 1 / micro-batches of the
            accumulation window. The terms do not hold it. Hooks that measure during that backward need it.
        task_weights: (T,) derivative of the objective by each of the losses that the regulariser is given, in their
            order; None in a loop that does not tell.
        slices: {task: its rows of Z} where one tensor holds the samples of tasks that do not share them, else None.
        process_group: The processes that share the batch, for collectives of the regulariser's own; None is the default
            group of torch.distributed.
        measure_gradient: Whether :attr:`Regularizer.gradient_squares` is asked for after this step.
        iteration: Forward passes of the run before this one.
        alone: Whether nothing but the tasks' losses and this penalty is in the objective.
        own_backward: Whether the penalties are differentiated in a backward of their own, as beside an aggregator.
        warn: Takes the text of a warning, for the log; None: the regulariser calls ``warnings.warn``.
        advance: Whether the call ends an optimizer step by itself. The trainer always passes False and calls
            :meth:`Regularizer.end_step` once the step is made, which it may not be, and which takes several calls with
            accumulation.
    """

    scale: float | Tensor = 1.0
    backward_scale: float = 1.0
    task_weights: Tensor | None = None
    slices: Mapping[str, slice] | None = None
    process_group: Any = None
    measure_gradient: bool = False
    iteration: int = 0
    alone: bool = True
    own_backward: bool = False
    warn: Callable[[str], None] | None = None
    advance: bool = True


#: That of a training loop of one's own.
PLAIN = RegularizerContext()


class Regularizer(nn.Module):
    """Base of penalties on the shared representation, added to the objective after weighting and aggregation.

    A subclass has to define :meth:`forward`. All else has a default. State that has to survive a resume belongs into
    buffers and parameters, which ``state_dict()`` holds.

    With several processes the *mean over ranks* of the terms and of their gradients is the term of the whole batch, as
    is the convention of DistributedDataParallel. A mean over this process's samples is right as it is.
    """

    #: Prefix of the diagnostics in the log; each regulariser of a run needs another one.
    name: str = 'regularizer'
    #: Names of the diagnostics that are logged in each iteration. The others come every ``diagnostics_interval``.
    always_logged: tuple[str, ...] = ()
    #: Cells of the tables in docs/methods.md; None for a penalty that is in no table.
    facts: Facts | None = None

    @property
    def needs_positive_losses(self) -> bool:
        """Whether it takes logarithms of the losses, so that a loss of exactly 0 counts as one without a label."""
        return False

    def forward(
        self, losses: Mapping[str, Tensor], representation: Representation, context: RegularizerContext = PLAIN
    ) -> dict[str, Tensor]:
        """Computes the penalty.

        It is called with autocast off, once per micro-batch. Float16 or bfloat16 representations arrive as they are.

        Args:
            losses: {task: scalar loss}, attached to the graph, not transformed, unweighted, in the order of the tasks.
                Tasks that no sample of the global batch is labelled for are absent; without any there is no call. Their
                values are means over ranks, their gradients this rank's.
            representation: The shared representation that the losses were computed from: a tensor, a list of them
                (several levels) or {task: tensor} (tasks that do not share samples).
            context: The other facts about this step.

        Returns:
            {name: scalar term}, already multiplied by the weights of the penalty, never by ``context.scale``.
        """
        raise NotImplementedError

    def end_step(self) -> None:
        """Counts an optimizer step that was made, with or without a label in its batch. Here it does nothing."""

    def drop_window(self) -> None:
        """Forgets the micro-batches since the last step: theirs is skipped, because something was not finite."""

    @property
    def gradient_squares(self) -> Tensor | None:
        """Squared norms at Z of the penalty's gradient and of the tasks', (2,), after a backward that was measured."""
        return None

    @property
    def diagnostics(self) -> dict[str, float]:
        """{name: value of the last call}, under the same names on all ranks; the log shows the mean over ranks."""
        return {}

    def shown_state(self) -> dict[str, Any]:
        """The values behind :attr:`diagnostics`, tensors on the CPU, for a checkpoint between two measurements.

        Only a regulariser that leaves out steps needs it: the log of a resumed run then equals an uninterrupted one. It
        is saved for each process, so what an accumulation window has gathered so far belongs here too.
        """
        return {}

    def load_shown_state(self, state: Mapping[str, Any]) -> None:
        """Restores :meth:`shown_state`."""
