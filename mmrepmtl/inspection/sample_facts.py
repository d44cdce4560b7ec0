"""Examines one sample: its defects, and numbers to sum up over a data set."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mmrepmtl.datasets import MultiTaskDataset
from mmrepmtl.datasets.base import isolated_rng
from mmrepmtl.structures import KINDS, VOID, KindTable


@dataclass
class TargetFacts:
    """Numbers of one target, of a sample or of many.

    ``counts`` by class (pixels or images), without void; ``valid`` of ``total`` elements; ``low`` and ``high`` of the
    valid ones, one per number of a regression.
    """

    samples: int = 0
    counts: Counter = field(default_factory=Counter)
    valid: int = 0
    total: int = 0
    low: np.ndarray = field(default_factory=lambda: np.array([np.inf]))
    high: np.ndarray = field(default_factory=lambda: np.array([-np.inf]))

    def add(self, other: 'TargetFacts') -> None:
        """Adds those of other samples."""
        self.samples += other.samples
        self.counts.update(other.counts)
        self.valid += other.valid
        self.total += other.total
        self.low = np.fmin(self.low, other.low)
        self.high = np.fmax(self.high, other.high)


@dataclass
class SampleFacts:
    """A sample: ``path``, its ``defect`` if it has one, sizes (H, W) as stored and as fed, facts by target."""

    path: str = ''
    defect: str | None = None
    size: tuple[int, int] | None = None
    fed: tuple[int, int] | None = None
    constant: bool = False
    targets: dict[str, TargetFacts] = field(default_factory=dict)


def inspect_sample(dataset: Any, index: int, seed: int, training: bool) -> SampleFacts:
    """Loads a sample, checks it, runs the pipeline (as in epoch 0) and checks what comes out.

    Args:
        dataset: A ``MultiTaskDataset``, or any data set of packed samples.
        index: The sample.
        seed: The seed of the augmentation.
        training: Whether dense targets must have the size of the image, as heads need it for their losses.
    """
    facts = SampleFacts(path=f'sample {index}')
    try:
        with isolated_rng(seed, 0, index):
            if isinstance(dataset, MultiTaskDataset):
                results = dataset.load(index)
                _look_at_results(results, facts)
                data = dataset.run_pipeline(results)
            else:
                data = dataset[index]
        _check_packed(data, facts, getattr(dataset, 'metainfo', {}).get('targets', {}), training)
    # Whatever goes wrong would have ended the training.
    except Exception as error:
        text = str(error) if isinstance(error, ValueError | OSError) else f'{type(error).__name__}: {error}'
        facts.defect = text if _names_a_file(text, facts.path) else f'{facts.path}: {text}'
    return facts


def _names_a_file(text: str, path: str) -> bool:
    """Whether a message begins with a file's name of its own."""
    first = text.partition(': ')[0]
    return text.startswith(path) or '/' in first


def _look_at_results(results: Mapping[str, Any], facts: SampleFacts) -> None:
    facts.path, facts.size = results['img_path'], tuple(results['img_shape'])
    img = results['img']
    facts.constant = bool(img.min() == img.max())
    for name, value in results['gt'].items():
        facts.targets[name] = look_at_target(value, results['targets'][name]['kind'])


def look_at_target(value: Any, kind: str) -> TargetFacts:
    """The facts of one loaded target, in the format of ``MultiTaskDataset``."""
    return FACTS[kind](value)


def _look_at_labels(value: np.ndarray) -> TargetFacts:
    labels, counts = np.unique(value, return_counts=True)
    by_class = Counter({int(label): int(n) for label, n in zip(labels, counts, strict=True) if label != VOID})
    return TargetFacts(1, by_class, by_class.total(), value.size)


def _look_at_depth(value: np.ndarray) -> TargetFacts:
    valid = value > 0
    facts = TargetFacts(1, Counter(), int(valid.sum()), valid.size)
    if facts.valid:
        facts.low, facts.high = np.array([value[valid].min()]), np.array([value.max()])
    return facts


def _look_at_normals(value: np.ndarray) -> TargetFacts:
    valid = value.any(axis=-1)
    return TargetFacts(1, Counter(), int(valid.sum()), valid.size)


def _look_at_class(value: int) -> TargetFacts:
    return TargetFacts(1, Counter([int(value)]), 1, 1)


def _look_at_numbers(value: np.ndarray) -> TargetFacts:
    valid = int(np.isfinite(value).sum())
    return TargetFacts(1, Counter(), valid, value.size, value.astype(np.float64), value.astype(np.float64))


#: Functions of a loaded target that return its facts.
FACTS: KindTable[Callable[[Any], TargetFacts]] = KindTable(
    'mmrepmtl.inspection.sample_facts.FACTS',
    dict(
        segmentation=_look_at_labels,
        binary=_look_at_labels,
        depth=_look_at_depth,
        normals=_look_at_normals,
        classification=_look_at_class,
        regression=_look_at_numbers,
    ),
)


def _check_packed(data: Any, facts: SampleFacts, declared: Mapping[str, Mapping], training: bool) -> None:
    if not isinstance(data, Mapping) or not {'inputs', 'data_samples'} <= set(data):
        raise ValueError("the pipeline does not end with dict(type='PackMultiTaskInputs')")
    inputs, sample = data['inputs'], data['data_samples']
    if inputs.ndim != 3 or not inputs.is_floating_point() or not bool(inputs.isfinite().all()):
        raise ValueError(
            f'after the pipeline: an image {tuple(inputs.shape)} {inputs.dtype}, expected finite floats (3, H, W)'
        )
    facts.fed = (int(inputs.shape[1]), int(inputs.shape[2]))
    for name, target in sample.targets.items():
        kind = declared.get(name, {}).get('kind')
        if kind in KINDS and KINDS[kind].dense and training and tuple(target.shape[-2:]) != facts.fed:
            raise ValueError(
                f'after the pipeline: target {name!r} has size {tuple(target.shape[-2:])}, its image {facts.fed}; '
                'resize them together'
            )
        nan_is_void = kind in KINDS and np.isnan(KINDS[kind].void or 0)
        if target.is_floating_point() and not nan_is_void and not bool(torch.isfinite(target).all()):
            raise ValueError(f'after the pipeline: target {name!r} holds values that are not finite')
