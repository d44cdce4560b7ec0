"""Values for the log: the settings of the method in one line, and values that are known only after the backward."""

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
    # Every rank takes part in the reduction, with the same entries; a rank that measured nothing brings zeros.
    local: dict[str, float] = {}
    for name, pair in found.items():
        local[f'{name}/penalty'], local[f'{name}/tasks'] = (0.0, 0.0) if pair is None else pair.tolist()
    squares = mean_over_ranks(local, step.objectives_T, wrapper.process_group)
    for name in found:
        if squares[f'{name}/tasks'] > 0:
            ratio = (squares[f'{name}/penalty'] / squares[f'{name}/tasks']).sqrt()
            hub.update_scalar(f'train/{name}/grad_ratio', float(ratio))


def describe(wrapper: 'MultiTaskOptimWrapper') -> str:
    """Describes the objective of a MultiTaskOptimWrapper in one line, with the choices in which papers differ."""
    inner = 'log L_t' if wrapper.loss_transform == 'log' else 'L_t'
    parts = [
        f'{type(wrapper.weighting).__name__} of {inner} over tasks {list(wrapper.prefixes)}',
        f'Z = output of {wrapper.shared!r}',
        f'precision {wrapper.precision.name}',
        *(str(r) for r in wrapper.regularizers),
    ]
    if wrapper.aggregator is not None:
        heads = 'weighted too' if wrapper.aggregator.weight_heads else 'by the definition of the method'
        parts.append(f'{type(wrapper.aggregator).__name__} at {wrapper.aggregator.level} level, heads {heads}')
    return '; '.join(parts)
