from .package_weights import without_initial_weights
from .timm_encoder import TimmEncoder

__all__ = ['TimmEncoder', 'without_initial_weights']
