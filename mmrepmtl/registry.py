"""Registries: children of mmengine's, so that configs written for mmseg or mmengine keep working.

The optim wrapper and the hooks are registered in mmengine's own (root) registries: a project whose
``default_scope`` is ``mmseg`` finds them by their plain names.
"""

import mmengine.registry
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS, OPTIM_WRAPPERS, Registry
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS

__all__ = [
    'AGGREGATORS',
    'DATASETS',
    'DATA_SAMPLERS',
    'HOOKS',
    'METRICS',
    'MODELS',
    'OPTIM_WRAPPERS',
    'REGULARIZERS',
    'TRANSFORMS',
    'WEIGHTINGS',
]

# Configs of others may inherit from ours, `_base_ = 'mmrepmtl::FOLDER/NAME.py'`: mmengine looks packages up here.
MODULE2PACKAGE.setdefault('mmrepmtl', 'mmrepmtl')

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmrepmtl', locations=['mmrepmtl.models'])
DATASETS = Registry('dataset', parent=MMENGINE_DATASETS, scope='mmrepmtl', locations=['mmrepmtl.datasets'])
DATA_SAMPLERS = Registry(
    'data sampler', parent=MMENGINE_DATA_SAMPLERS, scope='mmrepmtl', locations=['mmrepmtl.datasets']
)
TRANSFORMS = Registry(
    'transform', parent=MMENGINE_TRANSFORMS, scope='mmrepmtl', locations=['mmrepmtl.datasets.transforms']
)
METRICS = Registry('metric', parent=MMENGINE_METRICS, scope='mmrepmtl', locations=['mmrepmtl.evaluation'])

# mmengine warns of each registry that has no child in the default scope of a config.
for _name in (
    'LOOPS',
    'RUNNERS',
    'OPTIMIZERS',
    'OPTIM_WRAPPERS',
    'OPTIM_WRAPPER_CONSTRUCTORS',
    'PARAM_SCHEDULERS',
    'HOOKS',
    'EVALUATOR',
    'VISUALIZERS',
    'VISBACKENDS',
    'LOG_PROCESSORS',
    'MODEL_WRAPPERS',
    'FUNCTIONS',
):
    _parent = getattr(mmengine.registry, _name)
    # A registry of a package in that table must say what to import.
    Registry(_parent.name, parent=_parent, scope='mmrepmtl', locations=['mmrepmtl.engine'])

WEIGHTINGS = Registry('loss weighting', scope='mmrepmtl', locations=['mmrepmtl.engine.methods'])
AGGREGATORS = Registry('gradient aggregator', scope='mmrepmtl', locations=['mmrepmtl.engine.methods'])
REGULARIZERS = Registry('regularizer', scope='mmrepmtl', locations=['mmrepmtl.engine.methods'])
