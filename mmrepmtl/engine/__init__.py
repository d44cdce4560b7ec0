from .hooks import MetricsFileHook, ResumeHook, SelectionHook
from .optim_wrapper import MultiTaskOptimWrapper
from .separate import MultiTaskOptimWrapperDict, SeparateOptimizers

__all__ = [
    'MetricsFileHook',
    'MultiTaskOptimWrapper',
    'MultiTaskOptimWrapperDict',
    'ResumeHook',
    'SelectionHook',
    'SeparateOptimizers',
]
