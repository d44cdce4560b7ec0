"""What the log says of the method: its settings in one line, and what is known only after the backward."""

from typing import TYPE_CHECKING

from mmrepmtl.engine.objective import Step, mean_over_ranks

if TYPE_CHECKING:
    from mmrepmtl.engine.optim_wrapper import MultiTaskOptimWrapper


def report_gradients(wrapper: 'MultiTaskOptimWrapper', step: Step) -> None:
    """Logs the aggregator's weights and, at Z, the norm of the penalties' gradient relative to the tasks'.

    All ranks have to call this together.
    """
    hub, regularizers, level = wrapper.message_hub, wrapper.regularizers, wrapper.level
    if level is not None and level.weights_T is not None:
        for task, weight in zip(step.tasks, level.weights_T.tolist(), strict=True):
            hub.update_scalar(f'train/aggregator/{task}', weight)
    if not regularizers:
        return
    if level is not None:
        found = {'penalty': level.penalty_squares}
    else:
        found = {r.name: r.gradient_squares for r in regularizers}
    # Which entries there are must not depend on what this rank found: every rank takes part in the reduction.
    squares = {}
    for name, pair in found.items():
        squares[f'{name}/penalty'], squares[f'{name}/tasks'] = (0.0, 0.0) if pair is None else pair.tolist()
    squares = mean_over_ranks(squares, step.objectives_T, wrapper.process_group)
    for name in found:
        if squares[f'{name}/tasks'] > 0:
            ratio = (squares[f'{name}/penalty'] / squares[f'{name}/tasks']).sqrt()
            hub.update_scalar(f'train/{name}/grad_ratio', float(ratio))


def describe(wrapper: 'MultiTaskOptimWrapper') -> str:
    """The objective of a MultiTaskOptimWrapper in one line, with the definitions that the literature has two of."""
    inner = 'log L_t' if wrapper.loss_transform == 'log' else 'L_t'
    parts = [
        f'{type(wrapper.weighting).__name__} of {inner} over tasks {list(wrapper.prefixes or {})}',
        f'Z = output of {wrapper.shared!r}',
        f'precision {wrapper.precision.name}',
        *(str(r) for r in wrapper.regularizers),
    ]
    if wrapper.aggregator is not None:
        heads = 'weighted too' if wrapper.aggregator.weight_heads else 'by the definition of the method'
        parts.append(f'{type(wrapper.aggregator).__name__} at {wrapper.aggregator.level} level, heads {heads}')
    return '; '.join(parts)
