"""The methods as ``--method`` names them: the settings of every overlay, for tests that run over all of them."""

import copy
from functools import cache
from pathlib import Path

import torch
from mmengine.config import Config

from mmrepmtl.engine import MultiTaskOptimWrapper
from mmrepmtl.engine.methods import build_method
from mmrepmtl.registry import AGGREGATORS, WEIGHTINGS

FOLDER = Path(__file__).resolve().parents[2] / 'configs' / '_base_' / 'methods'


@cache
def _overlay(name: str) -> dict:
    settings = Config.fromfile(FOLDER / f'{name}.py').to_dict()['optim_wrapper']
    settings.pop('type')
    return settings


def settings_of(name: str) -> dict:
    """The overlay's arguments of MultiTaskOptimWrapper, as plain dicts; NAME@LEVEL sets the level of its aggregator."""
    name, _, level = name.partition('@')
    settings = copy.deepcopy(_overlay(name))
    if level:
        settings['aggregator']['level'] = level
    return settings


#: All methods of the command line but 'stl', which is one run for each task.
METHODS = sorted(path.stem for path in FOLDER.glob('*.py') if path.stem != 'stl')
AGGREGATED = [name for name in METHODS if settings_of(name)['aggregator']]
WEIGHTED = [name for name in METHODS if not settings_of(name)['aggregator']]


def other_levels(name: str) -> list[str]:
    """NAME@LEVEL for each level that an aggregator has beside that of its overlay."""
    aggregator = build_method(settings_of(name)['aggregator'], AGGREGATORS)
    return [f'{name}@{level}' for level in aggregator.levels if level != aggregator.level]


#: Every method at every level.
CASES = METHODS + [case for name in AGGREGATED for case in other_levels(name)]


def is_at_parameters(name: str) -> bool:
    return build_method(settings_of(name)['aggregator'], AGGREGATORS).level == 'parameter'


#: So that few steps reach every phase.
SHORT = {
    'STCH': dict(warmup_epochs=1),
    'IGBv2': dict(buffer_size=16, random_epochs=1, learn_after=1, update_every=2),
}


def without_epochs(settings: dict) -> dict:
    """For loops without epochs: methods that average over them get an interval of two steps."""
    weighting = settings['weighting']
    if weighting and build_method(weighting, WEIGHTINGS).per_epoch:
        return dict(settings, weighting=dict(weighting, interval=2) | SHORT.get(weighting['type'], {}))
    return settings


def ready(name: str, **changes) -> dict:
    """The settings of a method for a bare loop over batches."""
    return without_epochs(settings_of(name)) | changes


def wrap(model, name, lr=0.02, optimizer=torch.optim.SGD, **changes):
    settings = ready(name, **changes)
    return MultiTaskOptimWrapper(optimizer(model.parameters(), lr=lr), shared='encoder', **settings)


def window(name) -> int:
    """Micro-batches per step."""
    return settings_of(name).get('accumulative_counts', 1)
