"""The meaning of each metric name: its direction and whether it counts in Delta p. All others read this one table."""

from collections.abc import Mapping
from typing import NamedTuple

Directions = Mapping[str, bool]
"""Extra directions, ``{'task/metric' or 'metric': True where higher is better}``; they win over the table."""

AVERAGE = 'avg'
"""Stands for the task in the keys of averages over tasks, ``'avg/metric'``; no task can have this name."""


class MetricInfo(NamedTuple):
    """Facts about one metric name."""

    higher_is_better: bool
    in_delta_p: bool = True


METRIC_TABLE: dict[str, MetricInfo] = {
    'mIoU': MetricInfo(True),
    'pixAcc': MetricInfo(True),
    'abs_err': MetricInfo(False),
    'rel_err': MetricInfo(False),
    # The published tables have abs_err and rel_err only: counting rmse too would make Delta p incomparable with them.
    'rmse': MetricInfo(False, in_delta_p=False),
    'mean': MetricInfo(False),
    'median': MetricInfo(False),
    'within_11.25': MetricInfo(True),
    'within_22.5': MetricInfo(True),
    'within_30': MetricInfo(True),
    'maxF': MetricInfo(True),
    # A paper has one of maxF and the mean IoU for saliency: both would count the task's map twice.
    'max_mIoU': MetricInfo(True, in_delta_p=False),
    'odsF': MetricInfo(True),
    'top1': MetricInfo(True),
    'mae': MetricInfo(False),
}


def metric_name(key: str) -> str:
    """The metric's own name in a key ``'task/metric'``.

    Raises:
        ValueError: The key is not of that form.
    """
    task, separator, name = key.rpartition('/')
    if not (task and separator and name):
        raise ValueError(f"metric keys have the form 'task/metric', but one is '{key}'")
    return name


def higher_is_better(key: str, directions: Directions | None = None) -> bool:
    """Whether a larger value of the metric ``key`` (``'task/metric'``) is better.

    Args:
        key: The metric's key.
        directions: Extra directions, by full key or by metric name; they win over the table.

    Raises:
        ValueError: Neither ``directions`` nor the table knows the metric.
    """
    name = metric_name(key)
    for known in (key, name):
        if directions is not None and known in directions:
            return bool(directions[known])
    if name not in METRIC_TABLE:
        raise ValueError(
            f"the direction of metric '{key}' is unknown: pass directions={{'{name}': True}} if higher is "
            f'better, False if lower is; known metrics: {", ".join(METRIC_TABLE)}'
        )
    return METRIC_TABLE[name].higher_is_better


def counts_in_delta_p(key: str) -> bool:
    """Whether the metric ``key`` counts in Delta p unless the caller chooses; unknown metrics do, averages don't."""
    if key.startswith(f'{AVERAGE}/'):
        return False
    info = METRIC_TABLE.get(metric_name(key))
    return info is None or info.in_delta_p


def is_better(key: str, value: float, reference: float, directions: Directions | None = None) -> bool:
    """Whether ``value`` is strictly better than ``reference``; NaN is never better."""
    return value > reference if higher_is_better(key, directions) else value < reference
