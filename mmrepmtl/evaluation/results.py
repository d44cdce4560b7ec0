"""Results files: ``{"metrics": {"semseg/mIoU": 54.59, ...}, "meta": {...}}`` as JSON."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmrepmtl.utils.files import whole_file


def save_results(path: str | os.PathLike, metrics: Mapping[str, float], meta: Mapping[str, Any] | None = None) -> None:
    """Writes a results file atomically: a reader finds the old file or the whole new one, never a part.

    Args:
        path: The file; its folder is made if need be. A number that is not finite is written as null.
        metrics: ``{'task/metric': value}``.
        meta: Further facts to keep, in JSON's types: checkpoint, method, seed, ...
    """
    numbers = {key: float(value) for key, value in metrics.items()}
    content = {
        'metrics': {key: value if math.isfinite(value) else None for key, value in numbers.items()},
        'meta': dict(meta or {}),
    }
    text = json.dumps(content, indent=2, allow_nan=False) + '\n'
    with whole_file(path) as file:
        file.write(text.encode())


def load_results(path: str | os.PathLike) -> tuple[dict[str, float], dict[str, Any]]:
    """Reads a results file.

    Returns:
        The metrics, with NaN for null, and the meta data.

    Raises:
        ValueError: The file is not a results file.
    """
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
        metrics = {str(key): _number(key, value) for key, value in content['metrics'].items()}
        meta = content.get('meta') or {}
        if not isinstance(meta, dict):
            raise TypeError(f'"meta" is {type(meta).__name__}')
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ArithmeticError) as error:
        raise ValueError(
            f'{path} is not a results file, i.e. JSON of the form '
            f'{{"metrics": {{"task/metric": number}}, "meta": {{}}}}: {error!r}'
        ) from error
    except OSError as error:
        raise type(error)(error.errno, f'results cannot be read: {error.strerror}', str(path)) from error
    return metrics, meta


def _number(key: str, value: Any) -> float:
    if value is None:
        return math.nan
    # A text or a truth value would pass as a number below.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f'{key!r} is {value!r}, expected a number')
    return float(value)


def load_baseline(*paths: str | os.PathLike) -> dict[str, float]:
    """The single-task baseline for :func:`delta_p`, from one results file or from one per single-task run.

    Raises:
        ValueError: A file is not a results file, or two files hold the same metric.
    """
    if not paths:
        raise ValueError('load_baseline needs at least one results file')
    baseline: dict[str, float] = {}
    for path in paths:
        metrics, _ = load_results(path)
        twice = sorted(baseline.keys() & metrics.keys())
        if twice:
            raise ValueError(f'{path} holds metrics that an earlier baseline file holds too: {", ".join(twice)}')
        baseline |= metrics
    return baseline
