"""The methods as ``--method`` names them: the settings of every overlay, for tests that run over all of them."""

from pathlib import Path

from mmengine.config import Config

from mmrepmtl.engine.methods import build_method
from mmrepmtl.registry import WEIGHTINGS

FOLDER = Path(__file__).resolve().parents[2] / 'configs' / '_base_' / 'methods'


def settings_of(name: str) -> dict:
    """The overlay's arguments of MultiTaskOptimWrapper, as plain dicts."""
    settings = Config.fromfile(FOLDER / f'{name}.py').to_dict()['optim_wrapper']
    settings.pop('type')
    return settings


#: All methods of the command line but 'stl', which is one run for each task.
METHODS = sorted(path.stem for path in FOLDER.glob('*.py') if path.stem != 'stl')
AGGREGATED = [name for name in METHODS if settings_of(name)['aggregator']]
WEIGHTED = [name for name in METHODS if not settings_of(name)['aggregator']]


def without_epochs(settings: dict) -> dict:
    """For loops without epochs: methods that average over them get an interval of two steps."""
    weighting = settings['weighting']
    if weighting and build_method(weighting, WEIGHTINGS).per_epoch:
        return dict(settings, weighting=dict(weighting, interval=2))
    return settings


def ready(name: str, **changes) -> dict:
    """The settings of a method for a bare loop over batches."""
    return without_epochs(settings_of(name)) | changes
