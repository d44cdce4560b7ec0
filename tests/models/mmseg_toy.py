"""The toy encoder under a name, for configs that mmseg's tools read from a file."""

from mmrepmtl.registry import MODELS
from tests.models.toy import PlainEncoder

MODELS.register_module(name='ToyEncoder', module=PlainEncoder, force=True)
