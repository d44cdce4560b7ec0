"""The base of all metrics: streaming totals, exact over the data set, the same under any number of processes."""

import logging
import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any, overload

import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank, get_world_size, is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from torch import Tensor

Totals = dict[str, Tensor]
"""Additive statistics by name: int64 or float64 tensors. ``count`` is the number of valid elements."""

SampleKey = tuple[int, str | None]
"""Identifies a sample: its index and, as joined data sets repeat indices, its image's path."""


def padding_ranks(keys: Sequence[Sequence[SampleKey]]) -> set[int]:
    """The ranks whose last sample is a sampler's padding, i.e. a copy of a sample that another rank counts.

    ``DefaultSampler(round_up=True)`` and torch's ``DistributedSampler`` repeat the first samples so that all ranks
    get the same number; each rank gets at most one copy, as its last sample, the highest ranks first. So the highest
    ranks are looked at first, which leaves one copy of each sample also where every rank has only one.

    Args:
        keys: The processed samples of each rank, in order.
    """
    copies = Counter(chain.from_iterable(keys))
    padded = set()
    for rank in reversed(range(len(keys))):
        if keys[rank] and copies[keys[rank][-1]] > keys[rank].count(keys[rank][-1]):
            copies[keys[rank][-1]] -= 1
            padded.add(rank)
    return padded


class StreamingMetric(BaseMetric):
    """Metrics of one task from additive totals.

    A batch leaves only sums and counts (float64, int64, on the CPU), never an entry per pixel. The totals of a rank's
    last sample are kept apart until the next one arrives: if :meth:`evaluate` finds that it is the sampler's padding,
    it is left out, so that every sample counts exactly once. Every rank takes part in the same collectives, with or
    without samples of its own, and gets the same numbers. Integer totals do not depend on batch size or number of
    processes at all, float totals up to the rounding of a float64 sum.

    A sample without the target is unlabelled and left out; a task without a single valid element gives NaN and a
    warning, so that a validation on partly labelled data does not stop a training (:func:`delta_p` refuses NaN).

    Args:
        task: Name of the task; its prediction is ``sample['pred'][task]``.
        target: Name of the ground truth, ``sample['gt'][target]``. Default: the task's name.
        prefix: First part of the metrics' keys. Default: the task's name.
        reduction: 'pixel': over all valid elements of the set. 'batch', where the literature has it: the mean over
            batches of each batch's own value (:meth:`batch_values`), every batch with a valid element alike. It depends
            on how samples are grouped into batches, so it is for one process only.
        report: Names of the metrics to give, a part of the class's ``names``. Default: all.

    Raises:
        ValueError: The reduction is not available, or a name in ``report`` is unknown; 'batch' with several processes.
    """

    kind: str
    names: tuple[str, ...]
    reductions: tuple[str, ...] = ('pixel',)

    def __init__(
        self,
        task: str,
        target: str | None = None,
        prefix: str | None = None,
        reduction: str = 'pixel',
        report: Sequence[str] | None = None,
    ) -> None:
        super().__init__(prefix=prefix or task)
        if reduction not in self.reductions:
            raise ValueError(
                f"{type(self).__name__} of '{task}': reduction='{reduction}' is not available, only "
                f'{" and ".join(map(repr, self.reductions))} (over all valid elements of the set; means '
                'of per-batch values differ from it)'
            )
        unknown = sorted(set(report or ()) - set(self.names))
        if report is not None and (unknown or not report):
            raise ValueError(
                f"{type(self).__name__} of '{task}': report={list(report)} is not a part of its metrics "
                f'{", ".join(self.names)}'
            )
        self.task = task
        self.target = target or task
        self.reduction = reduction
        if report is not None:
            self.names = tuple(name for name in self.names if name in report)
        self._definition_logged = False
        self.reset()

    # Each metric class defines the following.

    @abstractmethod
    def zeros(self) -> Totals:
        """Totals of no sample; the same names, shapes and types on every rank."""

    @abstractmethod
    def check(self, prediction: Tensor, target: Tensor) -> None:
        """Raises ValueError for a prediction or target that is not in the data sample's format."""

    @abstractmethod
    def statistics(self, predictions: Sequence[Tensor], targets: Sequence[Tensor]) -> Totals:
        """Totals of a batch of labelled samples; sizes may differ between samples, on one device."""

    @abstractmethod
    def compute(self, totals: Totals) -> dict[str, float]:
        """The metrics, one per entry of ``names``; only called with ``totals['count'] > 0``."""

    @abstractmethod
    def definition(self) -> str:
        """How the metrics are defined where the literature has several definitions; logged once."""

    def batch_values(self, predictions: Sequence[Tensor], targets: Sequence[Tensor]) -> dict[str, float] | None:
        """The metrics of one batch's labelled samples for ``reduction='batch'``; None without a valid element."""
        totals = {name: value.cpu() for name, value in self.statistics(predictions, targets).items()}
        return self.compute(totals) if totals['count'] > 0 else None

    def describe(self, totals: Totals) -> str | None:
        """Details for the log beside the metrics."""
        return None

    # The machinery.

    def reset(self) -> None:
        """Forgets all samples."""
        self.results.clear()
        self._keys: list[SampleKey] = []
        self._totals: Totals | None = None
        self._last: Totals | None = None

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Adds a batch.

        Args:
            data_batch: Not used.
            data_samples: Data samples as nested dicts: ``gt``, ``pred``, ``sample_idx`` and, if known, ``img_path``.

        Raises:
            ValueError: A prediction is missing, not finite or in another format than the target's kind has.
        """
        if not data_samples:
            return
        self.check_meta()
        self._check_processes()
        keys = [self._key(sample) for sample in data_samples]
        if self.reduction == 'batch':
            before, last = self._batch_statistics(data_samples), None
        else:
            before, last = self._statistics(data_samples[:-1]), self._statistics(data_samples[-1:])
        # Only now, so that a refused batch leaves the state as it was.
        self._totals = _add(_add(self._totals, self._last), before)
        self._last = last
        self._keys += keys

    def evaluate(self, size: int) -> dict[str, float]:
        """The metrics over the whole set, the same on all ranks, which must all call this; forgets the samples.

        Args:
            size: Number of samples of the whole set.

        Returns:
            ``{'prefix/metric': value}``, NaN where nothing is labelled.

        Raises:
            ValueError: The ranks' samples are not the set's, each once (the padding of a sampler aside).
        """
        try:
            self._check_processes()
            totals = self._reduce(size)
            if is_main_process():
                self._log(totals, size)
            return self._prefixed(totals)
        finally:
            self.reset()

    def local_metrics(self) -> dict[str, float]:
        """The metrics over what this process has seen, without communication or checks; keeps the state."""
        return self._prefixed(_add(_add(self._zeros(), self._totals), self._last))

    def check_meta(self) -> None:
        """Raises ValueError if the data set's meta information has no such target, or one of another kind."""
        known = (self.dataset_meta or {}).get('targets')
        if known is None:
            return
        if self.target not in known:
            raise ValueError(
                f"{type(self).__name__} of '{self.task}': the data set has no target '{self.target}', "
                f'only {", ".join(known) or "none"}; set target='
            )
        kind = known[self.target].get('kind', self.kind)
        if kind != self.kind:
            raise ValueError(
                f"{type(self).__name__} of '{self.task}' evaluates targets of kind '{self.kind}', but "
                f"'{self.target}' is of kind '{kind}'"
            )

    def compute_metrics(self, results: list) -> dict:
        """Not used: the metrics come from totals, not from a list of results."""
        raise NotImplementedError(f'{type(self).__name__} computes from totals: see compute()')

    def _check_processes(self) -> None:
        if self.reduction == 'batch' and get_world_size() > 1:
            raise ValueError(
                f"{type(self).__name__} of '{self.task}': reduction='batch' depends on how samples are "
                f'grouped into batches, so it is for one process, but there are {get_world_size()}; '
                "evaluate in one process, or use reduction='pixel'"
            )

    def _zeros(self) -> Totals:
        if self.reduction == 'batch':
            values = torch.zeros(len(self.names), dtype=torch.float64)
            return {'count': torch.tensor(0), 'values': values}
        return self.zeros()

    def _prefixed(self, totals: Totals) -> dict[str, float]:
        if totals['count'] == 0:
            values = dict.fromkeys(self.names, math.nan)
        elif self.reduction == 'batch':
            values = dict(zip(self.names, (totals['values'] / totals['count']).tolist(), strict=True))
        else:
            values = self.compute(totals)
        return {f'{self.prefix}/{name}': values[name] for name in self.names}

    def _batch_statistics(self, samples: Sequence[dict]) -> Totals | None:
        """One batch as one element: 'count' is the number of batches with a valid element."""
        predictions, targets = self._labelled(samples)
        if not targets:
            return None
        values = self.batch_values(predictions, targets)
        totals = {'samples': torch.tensor(len(targets)), 'count': torch.tensor(int(values is not None))}
        values = values or dict.fromkeys(self.names, 0.0)
        return totals | {'values': torch.tensor([values[name] for name in self.names], dtype=torch.float64)}

    def _statistics(self, samples: Sequence[dict]) -> Totals | None:
        predictions, targets = self._labelled(samples)
        if not targets:
            return None
        totals = {name: value.cpu() for name, value in self.statistics(predictions, targets).items()}
        return totals | {'samples': torch.tensor(len(targets))}

    def _labelled(self, samples: Sequence[dict]) -> tuple[list[Tensor], list[Tensor]]:
        """Checked predictions and targets of the labelled samples."""
        predictions, targets = [], []
        for sample in samples:
            target = sample.get('gt', {}).get(self.target)
            if target is None:
                continue
            prediction = sample.get('pred', {}).get(self.task)
            where = f"task '{self.task}', sample {sample['sample_idx']}"
            if prediction is None:
                raise ValueError(
                    f"{where}: labelled ('{self.target}') but without a prediction; predictions there: "
                    f'{sorted(sample.get("pred", {})) or "none"}'
                )
            target = target.to(prediction.device)
            if prediction.is_floating_point() and not bool(prediction.isfinite().all()):
                raise ValueError(
                    f'{where}: the prediction is not finite '
                    f'({int((~prediction.isfinite()).sum())} of {prediction.numel()} values)'
                )
            try:
                self.check(prediction, target)
            except ValueError as error:
                raise ValueError(f'{where}: {error}') from error
            predictions.append(prediction)
            targets.append(target)
        return predictions, targets

    def _reduce(self, size: int) -> Totals:
        """Sums the totals over all ranks: integers by all-reduce, the few floats in the order of the ranks."""
        zeros = self._zeros() | {'samples': torch.tensor(0)}
        floats = [name for name, value in zeros.items() if value.is_floating_point()]
        integers = [name for name in zeros if name not in floats]
        parts = [_add(zeros, part) for part in (self._totals, self._last)]
        gathered = all_gather_object((self._keys, [{name: part[name] for name in floats} for part in parts]))
        padded = padding_ranks([keys for keys, _ in gathered])
        self._check_samples([keys[:-1] if rank in padded else keys for rank, (keys, _) in enumerate(gathered)], size)

        own = parts[0] if get_rank() in padded else _add(parts[0], parts[1])
        flat = torch.cat([own[name].flatten() for name in integers])
        all_reduce(flat)
        chunks = flat.split([zeros[name].numel() for name in integers])
        totals = {name: chunk.view_as(zeros[name]) for name, chunk in zip(integers, chunks, strict=True)}
        for name in floats:
            kept = [
                part[name]
                for rank, (_, rank_parts) in enumerate(gathered)
                for part in rank_parts[: 1 if rank in padded else 2]
            ]
            totals[name] = torch.stack(kept).sum(0)
        return totals

    def _check_samples(self, keys: Sequence[Sequence[SampleKey]], size: int) -> None:
        copies = Counter(chain.from_iterable(keys))
        repeated = [f'{index} ({path})' if path else str(index) for (index, path), n in copies.items() if n > 1]
        if repeated:
            raise ValueError(
                f"task '{self.task}': {len(repeated)} samples were evaluated more than once, e.g. "
                f'{", ".join(repeated[:5])}; use DefaultSampler (shuffle=False), and a sample_idx or '
                'img_path that differs between samples'
            )
        if len(copies) != size:
            raise ValueError(
                f"task '{self.task}': {len(copies)} distinct samples were evaluated, but the data set has "
                f'{size}; do not drop batches or samples in a validation or test loader'
            )

    def _key(self, sample: dict) -> SampleKey:
        if 'sample_idx' not in sample:
            raise ValueError(
                f"task '{self.task}': a data sample has no sample_idx, without which a sample that is "
                "evaluated twice cannot be told; keep it in the packing transform's meta keys"
            )
        path = sample.get('img_path')
        return int(sample['sample_idx']), None if path is None else str(path)

    def _log(self, totals: Totals, size: int) -> None:
        if not self._definition_logged:
            print_log(f'{self.prefix}: {self.definition()}', logger='current')
            self._definition_logged = True
        if totals['count'] == 0:
            print_log(
                f"{self.prefix}: {int(totals['samples'])} of {size} samples have the target '{self.target}', "
                'none of them a valid element: the metrics are nan',
                logger='current',
                level=logging.WARNING,
            )
        elif self.reduction == 'batch':
            print_log(f'{self.prefix}: means over {int(totals["count"])} batches', logger='current')
        elif (details := self.describe(totals)) is not None:
            print_log(details, logger='current')


@overload
def _add(left: Totals, right: Totals | None) -> Totals: ...
@overload
def _add(left: Totals | None, right: Totals | None) -> Totals | None: ...
def _add(left: Totals | None, right: Totals | None) -> Totals | None:
    """The sum, not in place; None stands for zeros."""
    if left is None or right is None:
        return right if left is None else left
    return {name: left[name] + right[name] for name in left}


def check_same_shape(prediction: Tensor, target: Tensor) -> None:
    """Raises ValueError unless prediction and target have the same shape."""
    if prediction.shape != target.shape:
        raise ValueError(
            f'the prediction has shape {tuple(prediction.shape)}, the target {tuple(target.shape)}; '
            "predictions are compared at the target's size"
        )
