"""Classes, functions and partials of a user's own, for configs that name them by import."""

from functools import partial

import torch
from mmengine.hooks import Hook
from mmengine.visualization import LocalVisBackend

from mmrepmtl.datasets.transforms import PackMultiTaskInputs
from mmrepmtl.evaluation import DepthMetric
from mmrepmtl.methods.weighting import Weighting
from mmrepmtl.models import ConvDecoder, MultiTaskModel

seen: list[str] = []


class CountingHook(Hook):
    """Notes that it ran."""

    def after_train(self, runner) -> None:
        seen.append(type(self).__name__)


class DoubleWeighting(Weighting):
    """Twice the sum of the losses."""

    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, losses_T, labelled_T=None, advance=True):
        return self.factor * losses_T.sum()


class Brighten:
    """A transform that is registered nowhere."""

    def __call__(self, results: dict) -> dict:
        results['img'] = results['img'].clip(0.1, 1)
        return results


class OwnDepthMetric(DepthMetric):
    """A metric derived from one of ours."""


class OwnBackend(LocalVisBackend):
    """A visualizer's backend that is registered nowhere."""


def build_model(**settings) -> MultiTaskModel:
    """A model by a function."""
    return MultiTaskModel(**settings)


def pack() -> PackMultiTaskInputs:
    """A transform by a function."""
    return PackMultiTaskInputs()


SmallAdam = partial(torch.optim.Adam, lr=1e-3)
SmallDecoder = partial(ConvDecoder, hidden_channels=4)
