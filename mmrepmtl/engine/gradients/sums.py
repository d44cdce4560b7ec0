"""The losses and the heads' gradients of an accumulation window, which both levels keep until they are written."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from mmrepmtl.engine.aliases import State
from mmrepmtl.engine.gradients.writing import accumulate
from mmrepmtl.engine.objective import Step
from mmrepmtl.methods.aggregation import Aggregator


class WindowSums:
    """Sums over the micro-batches of an accumulation window.

    The heads' gradients go to ``.grad`` at once. If the method weights them, they are kept until the weights are known.

    Args:
        aggregator: The method.

    Attributes:
        count: Micro-batches so far.
        heads: {task's number: {parameter: gradient}}, those that are not in ``.grad`` yet.
    """

    def __init__(self, aggregator: Aggregator) -> None:
        self.aggregator = aggregator
        own = type(aggregator).head_weights is not Aggregator.head_weights
        self._keeps_heads = aggregator.weight_heads or own
        self.clear()

    def clear(self) -> None:
        """Begins a window."""
        self.count = 0
        self._sums: tuple[Tensor, Tensor] | None = None  # sums of the losses and of the labels, (T,) each
        self.heads: dict[int, dict[nn.Parameter, Tensor]] = {}

    def add(self, step: Step) -> None:
        """Adds the losses of a micro-batch."""
        labelled_T = step.labelled_T.to(step.objectives_T.dtype)
        losses_T = torch.where(step.labelled_T, step.objectives_T, 0)
        if self._sums is not None:
            losses_T, labelled_T = self._sums[0] + losses_T, self._sums[1] + labelled_T
        self._sums = losses_T, labelled_T
        self.count += 1

    def mean_losses(self) -> Tensor:
        """Mean over the micro-batches in which the task is labelled, 0 where there is none, (T,).

        Raises:
            RuntimeError: If the window has no micro-batch yet.
        """
        if self._sums is None:
            raise RuntimeError('WindowSums: the window has no micro-batch yet')
        losses_T, labelled_T = self._sums
        return losses_T / labelled_T.clamp(min=1)

    def add_heads(self, task: int, heads: Sequence[nn.Parameter], grads: Sequence[Tensor | None]) -> None:
        """Adds the gradients of one task's loss by the parameters after Z."""
        if not self._keeps_heads:
            accumulate(heads, grads)
            return
        held = self.heads.setdefault(task, {})
        for p, grad in zip(heads, grads, strict=True):
            if grad is not None:
                held[p] = held[p] + grad if p in held else grad

    def unwritten(self) -> Iterator[Tensor]:
        """The gradients that are not in ``.grad`` yet."""
        return (grad for grads in self.heads.values() for grad in grads.values())

    def write_heads(self, weights_T: Tensor | None, losses_T: Tensor) -> None:
        """Moves the heads' gradients to ``.grad``, multiplied by the method's factors for heads.

        Args:
            weights_T: Weights of the combination, (T,); None if it has none.
            losses_T: Losses that the combination has seen, (T,).
        """
        if not self._keeps_heads:
            return
        factors_T = self.aggregator.head_weights(weights_T, losses_T)
        factors = [1.0] * len(losses_T) if factors_T is None else factors_T.tolist()
        for task, held in self.heads.items():
            while held:  # one by one: a copy of all heads' gradients would be the peak of the step
                p, grad = held.popitem()
                accumulate([p], [grad * factors[task]])
        self.heads = {}

    def state_dict(self, index: Mapping[int, int]) -> State:
        """Returns the sums of a window that is not finished; ``index`` is {id of a parameter: its number}."""
        losses_T, labelled_T = self._sums or (None, None)
        return dict(
            count=self.count,
            losses_T=losses_T,
            labelled_T=labelled_T,
            heads={t: {index[id(p)]: grad.cpu() for p, grad in held.items()} for t, held in self.heads.items()},
        )

    def load_state_dict(self, state: State, parameters: Sequence[nn.Parameter]) -> None:
        """Restores :meth:`state_dict`; ``parameters`` are in the order of its numbers."""
        device = parameters[0].device
        self.count = state['count']
        losses_T, labelled_T = state['losses_T'], state['labelled_T']
        self._sums = None if losses_T is None else (losses_T.to(device), labelled_T.to(device))
        self.heads = {
            t: {parameters[i]: grad.to(device) for i, grad in held.items()} for t, held in state['heads'].items()
        }
