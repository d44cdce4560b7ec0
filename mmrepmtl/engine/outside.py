"""The model's parameters that are not in the optimizer of a wrapper; another optimizer may train them."""

from collections.abc import Mapping, Sequence

from torch import nn

from mmrepmtl.methods.aggregation import Aggregator


class OutsideParameters:
    """The parameters of a model that are in no group of an optim wrapper's optimizer.

    Attributes:
        are_untrained: Whether the runner has no other optimizer, so that nothing trains them.
    """

    def __init__(self) -> None:
        self.are_untrained = False
        self._found: dict[str, nn.Parameter] = {}

    def find(self, model: nn.Module, own: Sequence[nn.Parameter]) -> None:
        """Finds the parameters of ``model`` that are not among ``own``, the optimizer's; frozen ones too."""
        ids = {id(p) for p in own}
        self._found = {name: p for name, p in model.named_parameters() if id(p) not in ids}

    def trainable(self, precision: str, aggregator: Aggregator | None) -> list[nn.Parameter]:
        """Returns those that are trainable now.

        Args:
            precision: That of the run.
            aggregator: That of the run, or None.

        Raises:
            ValueError: If there are any and they cannot be trained right.
        """
        trainable = {name: p for name, p in self._found.items() if p.requires_grad}
        if trainable:
            _check(trainable, self.are_untrained, precision, aggregator)
        return list(trainable.values())

    def drop_gradients(self) -> None:
        """Drops their gradients."""
        for p in self._found.values():
            p.grad = None


def _check(
    outside: Mapping[str, nn.Parameter], are_untrained: bool, precision: str, aggregator: Aggregator | None
) -> None:
    names = ', '.join(map(repr, list(outside)[:5])) + (', ...' if len(outside) > 5 else '')
    which = f'MultiTaskOptimWrapper: {len(outside)} trainable parameters of the model are not in its optimizer: {names}'
    way_out = (
        "several optimizers go into one optim wrapper, constructor='SeparateOptimizers' (docs/engine.md, Separate "
        'optimizers)'
    )
    if are_untrained:
        raise ValueError(
            f'{which}; they would never learn. Freeze them (requires_grad_(False)) or give them to the optimizer; '
            f'{way_out}'
        )
    if precision == 'fp16':
        raise ValueError(
            f"{which}; with precision='fp16' their gradients would stay multiplied by the loss scale. Use bf16 or "
            f'fp32; {way_out}'
        )
    if aggregator is not None and aggregator.returns == 'update':
        raise ValueError(
            f'{which}; {type(aggregator).__name__} is an optimizer and steps the shared parameters itself. '
            f'{way_out[0].upper()}{way_out[1:]}'
        )
