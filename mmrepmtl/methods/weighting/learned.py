"""The base of weightings that learn a number per task. Dimensions: T tasks."""

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from .history import LazyWeighting, labelled_mask


class LearnedWeighting(LazyWeighting):
    """Base of weightings with one learned number per task, 0 at the start: the scalar is a sum of one term per task.

    The run's optimizer trains the numbers by the gradient of the scalar (``weighting_lr``). An unlabelled task is left
    out, its number included, whose gradient is 0. A subclass names the parameter in :attr:`sized_by` and defines
    :meth:`terms`.

    Args:
        num_tasks: T; None where :meth:`setup` tells it later.
    """

    loss_transform = 'own'

    def __init__(self, num_tasks: int | None = None) -> None:
        super().__init__()
        # It is a Parameter, which torch's stub does not say.
        self.register_parameter(self.sized_by, UninitializedParameter())  # type: ignore[arg-type]
        if num_tasks is not None:
            self.setup(num_tasks)

    def setup(self, num_tasks: int) -> None:
        """Materialises the T numbers at 0. Idempotent."""
        learned_T = getattr(self, self.sized_by)
        if isinstance(learned_T, UninitializedParameter):
            learned_T.materialize((num_tasks,))
            nn.init.zeros_(learned_T)

    def forward(self, losses_T: Tensor, labelled_T: Tensor | None = None, advance: bool = True) -> Tensor:
        """Returns the sum of :meth:`terms` over the labelled tasks."""
        self.setup(len(losses_T))
        return self.terms(losses_T, getattr(self, self.sized_by))[labelled_mask(losses_T, labelled_T)].sum()

    def terms(self, losses_T: Tensor, learned_T: Tensor) -> Tensor:
        """The term of each task, (T,), of its loss and its learned number; an unlabelled task's loss is 0."""
        raise NotImplementedError
