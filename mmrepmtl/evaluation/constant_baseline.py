"""The best constant prediction of the training set for each metric; a model must beat it to have learned anything.

    constants = fit_constants(train_set, cfg.test_evaluator)
    values = evaluate_constants(test_set, cfg.test_evaluator, constants)     # {'task/metric': value}
    print(comparison_table(model_metrics, values))

Metrics with ``reduction='batch'`` are left out: they depend on the batches, which a constant's evaluation has not.
Each metric has its own best constant (a median for one, a mean for another), so no single constant reaches all the
values at once: it is a bar, not a model. The data sets give samples with targets as the model gets them, so build the
training set with the test pipeline: an augmentation would change the statistics.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mmrepmtl.evaluation.constant_fitters import FITTERS, Constant, ConstantFitter
from mmrepmtl.evaluation.metric_table import Directions, higher_is_better, is_better
from mmrepmtl.evaluation.streaming import StreamingMetric
from mmrepmtl.registry import METRICS
from mmrepmtl.structures import MultiTaskDataSample
from mmrepmtl.utils.progress import Progress

Specs = Mapping | StreamingMetric | Sequence[Mapping | StreamingMetric]
"""Metrics or their configs, as in ``test_evaluator``."""


def fit_constants(
    dataset: Iterable, specs: Specs, max_samples: int | None = None, progress: bool = True
) -> dict[str, Constant]:
    """The best constant of a data set for each metric, in one pass and bounded memory.

    Class ids for segmentation and classification, a number for depth, a direction for normals, D numbers for
    regression. Depth's medians are exact up to 1.2e-4 relative, normals up to the width of the search grid and
    the histogram's cells (below 0.5 degree, where the scores are flat); all others are exact.

    Args:
        dataset: A data set (or any iterable) of packed items ``dict(data_samples=...)``, of batches of them, or of data
            samples; in one process, not sharded.
        specs: Metrics or their configs, as in ``test_evaluator``; of the kinds in ``FITTERS``.
        max_samples: Look at this many samples only, spread evenly over a data set, the first ones of an iterable.
        progress: Show how far it is.

    Returns:
        ``{'task/metric': constant}``, keyed like the metrics, of types that JSON knows.

    Raises:
        ValueError: A task has no valid label in the data set, or a metric has no constant baseline.
    """
    fitters = [_fitter(metric)(metric) for metric in _build(specs, dataset)]
    for sample in _samples(dataset, max_samples, 'best constants, fit' if progress else None):
        for fitter in fitters:
            target = sample.targets.get(fitter.metric.target)
            if target is not None:
                fitter.add(target.cpu())
    for fitter in fitters:
        if not fitter.count:
            raise ValueError(
                f"no constant fits task '{fitter.metric.task}': no sample has a valid element of the "
                f"target '{fitter.metric.target}'"
            )
    return {
        f'{fitter.metric.prefix}/{name}': constant
        for fitter in fitters
        for name, constant in fitter.constants().items()
    }


def evaluate_constants(
    dataset: Iterable,
    specs: Specs,
    constants: Mapping[str, Constant],
    max_samples: int | None = None,
    progress: bool = True,
) -> dict[str, float]:
    """Each metric of its own best constant, computed by the metric's own class, in one pass.

    Args:
        dataset: The test set; see :func:`fit_constants`.
        specs: The same as for :func:`fit_constants`.
        constants: The result of :func:`fit_constants` for the training set.
        max_samples: See :func:`fit_constants`.
        progress: Show how far it is.

    Returns:
        ``{'task/metric': value}``, NaN where the data set has no labels.

    Raises:
        ValueError: A constant is missing.
    """
    # One metric object for each constant: metrics that agree on the constant share it.
    runs: list[tuple[StreamingMetric, Constant, list[str]]] = []
    for metric in _build(specs, dataset):
        by_constant: list[tuple[Constant, list[str]]] = []
        for key in (f'{metric.prefix}/{name}' for name in metric.names):
            if key not in constants:
                raise ValueError(f"there is no constant for '{key}', only for {', '.join(constants) or 'nothing'}")
            for constant, keys in by_constant:
                if constant == constants[key]:
                    keys.append(key)
                    break
            else:
                by_constant.append((constants[key], [key]))
        runs += [(copy.deepcopy(metric), constant, keys) for constant, keys in by_constant]
    for index, sample in enumerate(_samples(dataset, max_samples, 'best constants, test' if progress else None)):
        for metric, constant, _ in runs:
            target = sample.targets.get(metric.target)
            if target is None:
                continue
            target = target.cpu()
            prediction = {metric.task: _fitter(metric).predict(constant, target)}
            metric.process(None, [{'gt': {metric.target: target}, 'pred': prediction, 'sample_idx': index}])
    values = [(metric.local_metrics(), keys) for metric, _, keys in runs]
    return {key: metrics[key] for metrics, keys in values for key in keys}


def comparison_table(
    model_metrics: Mapping[str, float], constant_metrics: Mapping[str, float], directions: Directions | None = None
) -> str:
    """A text table of the model's metrics beside the best constant's.

    Args:
        model_metrics: ``{'task/metric': value}``.
        constant_metrics: From :func:`evaluate_constants`; '-' where it has no such metric.
        directions: Extra directions, see :func:`higher_is_better`.

    Returns:
        Lines 'metric, direction, model, best constant, better?'.
    """
    rows = [('metric', '', 'model', 'best constant', 'better?')]
    for key, value in model_metrics.items():
        arrow = '↑' if higher_is_better(key, directions) else '↓'
        if key in constant_metrics:
            constant = constant_metrics[key]
            rows.append(
                (
                    key,
                    arrow,
                    _number(value),
                    _number(constant),
                    'yes' if is_better(key, value, constant, directions) else 'no',
                )
            )
        else:
            rows.append((key, arrow, _number(value), '-', '-'))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return '\n'.join(
        '  '.join(
            cell.ljust(width) if column in (0, 1, 4) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _number(value: float) -> str:
    return f'{value:.2f}' if abs(value) >= 10 else f'{value:.4f}'


def _fitter(metric: StreamingMetric) -> type[ConstantFitter]:
    if getattr(metric, 'kind', None) not in FITTERS:
        raise ValueError(
            f'{type(metric).__name__} has no constant baseline, only metrics of the kinds {", ".join(FITTERS)}'
        )
    return FITTERS[metric.kind]


def _build(specs: Specs, dataset: Any) -> list[StreamingMetric]:
    """Fresh metrics that know the data set's targets."""
    if not isinstance(specs, Sequence):
        specs = [specs]
    metrics = [
        copy.deepcopy(spec) if isinstance(spec, StreamingMetric) else METRICS.build(copy.deepcopy(spec))
        for spec in specs
    ]
    # Samples go by one by one here, so per-batch values would be other ones.
    metrics = [metric for metric in metrics if getattr(metric, 'reduction', 'pixel') == 'pixel']
    for metric in metrics:
        metainfo = getattr(dataset, 'metainfo', None)
        if metainfo is not None:
            metric.dataset_meta = metainfo
        _fitter(metric)
        metric.check_meta()
        metric.reset()
    return metrics


def _samples(dataset: Any, max_samples: int | None, label: str | None) -> Iterator[MultiTaskDataSample]:
    """The data samples; their progress is shown under ``label``."""
    if max_samples is not None and max_samples < 1:
        raise ValueError(f'max_samples is {max_samples}, but must be at least 1')
    items: Iterable = dataset
    taken = max_samples
    if hasattr(dataset, '__getitem__') and hasattr(dataset, '__len__'):
        size = len(dataset)
        number = taken = size if max_samples is None else min(max_samples, size)
        # Spread over the set: neighbouring samples often show the same scene.
        items = (dataset[index * size // number] for index in range(number))
    bar = None if label is None else Progress(label, taken or 0, lines=4)
    seen = 0
    try:
        for item in items:
            for sample in _unpack(item):
                if seen == max_samples:
                    return
                yield sample
                seen += 1
                if bar is not None:
                    bar.step()
    finally:
        if bar is not None:
            bar.close()


def _unpack(item: Any) -> Sequence[MultiTaskDataSample]:
    found: Any = item.get('data_samples') if isinstance(item, Mapping) else item
    samples = found if isinstance(found, Sequence) else [found]
    for sample in samples:
        if not isinstance(sample, MultiTaskDataSample):
            raise ValueError(
                'items must be packed, dict(data_samples=MultiTaskDataSample), or data samples, but one '
                f'is a {type(item).__name__} that holds a {type(sample).__name__}'
            )
    return samples
