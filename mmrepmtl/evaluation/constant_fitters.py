"""For each kind of task: the constant prediction that is best on the training set, by metric."""

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from mmrepmtl.evaluation.constant_normal import SCORES, best_direction
from mmrepmtl.evaluation.histograms import PositiveHistogram, SphereHistogram, weighted_median
from mmrepmtl.evaluation.streaming import StreamingMetric
from mmrepmtl.structures.kinds import KindTable

Constant = int | float | list[float]
C = TypeVar('C', int, float, list[float])


class ConstantFitter(ABC, Generic[C]):
    """Collects the training targets of one task and gives the best constant for each of its metrics.

    Args:
        metric: Says which elements of a target are valid, and how many classes there are.
    """

    def __init__(self, metric: StreamingMetric) -> None:
        self.metric = metric
        self.count = 0

    def add(self, target: Tensor) -> None:
        """Adds one sample's target."""
        self.count += self._add(target)

    @abstractmethod
    def _add(self, target: Tensor) -> int:
        """Adds one sample's target and returns its number of valid elements."""

    @abstractmethod
    def constants(self) -> dict[str, C]:
        """The best constant by metric name; only called if there was a valid element."""

    @staticmethod
    @abstractmethod
    def predict(constant: C, target: Tensor) -> Tensor:
        """The prediction in the data sample's format that says ``constant`` for a sample with this target."""


class SegmentationConstants(ConstantFitter[int]):
    """One class everywhere: the most frequent (pixAcc), the one whose constant prediction has the best mIoU (mIoU)."""

    def __init__(self, metric: StreamingMetric) -> None:
        super().__init__(metric)
        self.pixels = np.zeros(metric.num_classes, np.int64)

    def _add(self, target: Tensor) -> int:
        valid = target[self.metric.valid(target)]
        self.pixels += np.bincount(valid.long().numpy(), minlength=len(self.pixels))
        return len(valid)

    def constants(self) -> dict[str, int]:
        """The class for ``mIoU`` and the one for ``pixAcc``."""
        # Saying class c everywhere: its IoU is its share, all others' is 0; the mean is over the classes that occur.
        occurring = (self.pixels > 0).sum() + (self.pixels == 0)
        return {'mIoU': int((self.pixels / occurring).argmax()), 'pixAcc': int(self.pixels.argmax())}

    @staticmethod
    def predict(constant: int, target: Tensor) -> Tensor:
        """The class at every pixel, int64 of the shape of ``target``."""
        return torch.full(target.shape, constant, dtype=torch.int64)


class BinaryConstants(ConstantFitter[float]):
    """Yes everywhere: the metrics ask where a probability is above thresholds, and without a yes they are 0."""

    def _add(self, target: Tensor) -> int:
        return int(self.metric.valid(target).sum())

    def constants(self) -> dict[str, float]:
        """The probability 1 for every metric."""
        return dict.fromkeys(self.metric.names, 1.0)

    @staticmethod
    def predict(constant: float, target: Tensor) -> Tensor:
        """The probability at every pixel, float32 of the shape of ``target``."""
        return torch.full(target.shape, constant, dtype=torch.float32)


class DepthConstants(ConstantFitter[float]):
    """The median (abs_err), the median weighted by 1 / depth (rel_err) and the mean (rmse) of all valid pixels."""

    def __init__(self, metric: StreamingMetric) -> None:
        super().__init__(metric)
        self.histogram = PositiveHistogram()

    def _add(self, target: Tensor) -> int:
        valid = target[self.metric.valid(target)]
        self.histogram.add(valid.numpy())
        return len(valid)

    def constants(self) -> dict[str, float]:
        """A depth for each metric, in the unit of the targets."""
        values, counts = self.histogram.points()
        return {
            'abs_err': weighted_median(values, counts),
            'rel_err': weighted_median(values, counts / values),
            'rmse': float(values @ counts / counts.sum()),
        }

    @staticmethod
    def predict(constant: float, target: Tensor) -> Tensor:
        """The depth at every pixel, float64 of the shape of ``target``."""
        return torch.full(target.shape, constant, dtype=torch.float64)


class NormalConstants(ConstantFitter[list[float]]):
    """One direction everywhere, searched for each metric."""

    def __init__(self, metric: StreamingMetric) -> None:
        super().__init__(metric)
        self.histogram = SphereHistogram()

    def _add(self, target: Tensor) -> int:
        valid = target[:, self.metric.valid(target)]
        self.histogram.add(valid.numpy())
        return valid.shape[1]

    def constants(self) -> dict[str, list[float]]:
        """A unit vector for each metric."""
        return {name: best_direction(self.histogram, score).tolist() for name, score in SCORES.items()}

    @staticmethod
    def predict(constant: list[float], target: Tensor) -> Tensor:
        """The vector at every pixel, (3, H, W) float64."""
        vector = torch.tensor(constant, dtype=torch.float64)
        return vector.view(3, *[1] * (target.ndim - 1)).expand(target.shape)


class ClassificationConstants(ConstantFitter[int]):
    """The most frequent class."""

    def __init__(self, metric: StreamingMetric) -> None:
        super().__init__(metric)
        self.images: dict[int, int] = {}

    def _add(self, target: Tensor) -> int:
        self.images[int(target)] = self.images.get(int(target), 0) + 1
        return 1

    def constants(self) -> dict[str, int]:
        """The class for ``top1``; the lowest of several that are equally frequent."""
        return {'top1': min(self.images, key=lambda index: (-self.images[index], index))}

    @staticmethod
    def predict(constant: int, target: Tensor) -> Tensor:
        """Scores (K,) whose highest is that of the class; K is as large as the two classes need."""
        scores = torch.zeros(max(constant, int(target)) + 1)
        scores[constant] = 1
        return scores


class RegressionConstants(ConstantFitter[list[float]]):
    """Median (mae) and mean (rmse) of each component; keeps all values, which are few per image."""

    def __init__(self, metric: StreamingMetric) -> None:
        super().__init__(metric)
        self.values: list[np.ndarray] = []

    def _add(self, target: Tensor) -> int:
        valid = self.metric.valid(target)
        self.values.append(torch.where(valid, target.double(), torch.nan).numpy())
        return int(valid.sum())

    def constants(self) -> dict[str, list[float]]:
        """The best constant of each metric; see the base class."""
        values = np.stack(self.values)
        # A component that is never valid has no say in any error: 0 stands for it.
        known = np.isfinite(values).any(0)
        best = {'mae': np.zeros(values.shape[1]), 'rmse': np.zeros(values.shape[1])}
        best['mae'][known] = np.nanmedian(values[:, known], axis=0)
        best['rmse'][known] = np.nanmean(values[:, known], axis=0)
        return {name: constant.tolist() for name, constant in best.items()}

    @staticmethod
    def predict(constant: list[float], target: Tensor) -> Tensor:
        """The values (D,) float64."""
        return torch.tensor(constant, dtype=torch.float64)


FITTERS: KindTable[type[ConstantFitter]] = KindTable(
    'mmrepmtl.evaluation.constant_fitters.FITTERS',
    dict(
        segmentation=SegmentationConstants,
        binary=BinaryConstants,
        depth=DepthConstants,
        normals=NormalConstants,
        classification=ClassificationConstants,
        regression=RegressionConstants,
    ),
)
