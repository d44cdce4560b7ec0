"""One number for a multi-task model: its mean relative change against single-task models, in percent."""

import math
from collections.abc import Iterable, Mapping
from typing import Literal

from mmrepmtl.evaluation.metric_table import Directions, counts_in_delta_p, higher_is_better


def delta_p(
    metrics: Mapping[str, float],
    baseline: Mapping[str, float],
    mode: Literal['task', 'metric'] = 'task',
    directions: Directions | None = None,
    keys: Iterable[str] | None = None,
) -> float:
    """Mean relative improvement over the single-task baseline in percent; positive is better than the baseline.

    With r = sign * (M - M_STL) / M_STL * 100, where the sign is -1 if lower is better:

    * ``mode='task'``: mean over tasks of the mean over the task's metrics of r (each task counts alike);
    * ``mode='metric'``: mean over all metrics of r (each metric counts alike).

    Args:
        metrics: The model's metrics, ``{'task/metric': value}``.
        baseline: The single-task models' metrics, from another run (:func:`load_baseline`).
        mode: 'task' or 'metric'.
        directions: Extra directions, ``{'task/metric' or 'metric': True where higher is better}``.
        keys: The metrics that count. Default: all of both, apart from rmse, which the published tables do not have.

    Raises:
        ValueError: A counting metric is missing on one side, not finite, of unknown direction, or its baseline is not
            positive.

    Source: Maninis et al., CVPR 2019 (arXiv 1904.08918); both modes reproduce the NYUv2 table of Rep-MTL
    (arXiv 2507.21049).
    """
    if mode not in ('task', 'metric'):
        raise ValueError(f"delta_p has the modes 'task' and 'metric', not '{mode}'")
    if keys is None:
        keys = [key for key in dict.fromkeys((*baseline, *metrics)) if counts_in_delta_p(key)]
    by_task: dict[str, list[float]] = {}
    for key in dict.fromkeys(keys):
        sign = 1 if higher_is_better(key, directions) else -1
        change = sign * _relative_change(key, metrics, baseline)
        by_task.setdefault(key.rpartition('/')[0], []).append(100 * change)
    if not by_task:
        raise ValueError('delta_p: there is no metric to compare')
    if mode == 'task':
        return _mean([_mean(changes) for changes in by_task.values()])
    return _mean([change for changes in by_task.values() for change in changes])


def check_baseline(
    baseline: Mapping[str, float], keys: Iterable[str] | None = None, directions: Directions | None = None
) -> None:
    """Checks what :func:`delta_p` needs of a baseline, before the metrics that it will be compared with are computed.

    Args:
        baseline: The single-task models' metrics.
        keys: The metrics that the model will have; None if they are not known yet.
        directions: As for :func:`delta_p`.

    Raises:
        ValueError: As :func:`delta_p` with metrics of these keys.
    """
    counting = [key for key in baseline if counts_in_delta_p(key)]
    expected = counting if keys is None else [key for key in keys if counts_in_delta_p(key)]
    # Any finite value stands for one that is not known yet.
    delta_p(dict.fromkeys(expected, 1.0), baseline, directions=directions)


def delta_p_task(
    metrics: Mapping[str, float],
    baseline: Mapping[str, float],
    directions: Directions | None = None,
    keys: Iterable[str] | None = None,
) -> float:
    """:func:`delta_p` with each task counting alike, the papers' headline number."""
    return delta_p(metrics, baseline, 'task', directions, keys)


def delta_p_metric(
    metrics: Mapping[str, float],
    baseline: Mapping[str, float],
    directions: Directions | None = None,
    keys: Iterable[str] | None = None,
) -> float:
    """:func:`delta_p` with each metric counting alike."""
    return delta_p(metrics, baseline, 'metric', directions, keys)


def delta_m(
    metrics: Mapping[str, float],
    baseline: Mapping[str, float],
    directions: Directions | None = None,
    keys: Iterable[str] | None = None,
) -> float:
    """Delta m of CAGrad, Nash-MTL and FAMO: the negative of :func:`delta_p_metric`, so lower is better."""
    return -delta_p_metric(metrics, baseline, directions, keys)


ARI = delta_p_task
"""Average relative improvement, another name of :func:`delta_p_task`."""


def _relative_change(key: str, metrics: Mapping[str, float], baseline: Mapping[str, float]) -> float:
    for where, values in (('metrics', metrics), ('baseline', baseline)):
        if key not in values:
            raise ValueError(
                f"delta_p: '{key}' is missing in the {where}, which have "
                f'{", ".join(values) or "nothing"}; compare the same metrics, or name those that count in '
                'keys='
            )
        if not math.isfinite(values[key]):
            raise ValueError(
                f"delta_p: '{key}' is {values[key]} in the {where} (was the task labelled and "
                'evaluated?); leave it out by keys='
            )
    if baseline[key] <= 0:
        raise ValueError(
            f"delta_p: '{key}' is {baseline[key]} in the baseline: no relative change can be taken from a "
            'value that is not positive; leave it out by keys='
        )
    return (metrics[key] - baseline[key]) / baseline[key]


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
