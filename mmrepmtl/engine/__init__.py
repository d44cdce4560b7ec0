from . import storage
from .hooks import CheckpointHook, Interrupted, InterruptHook, MetricsFileHook, ResumeHook, SelectionHook
from .optim_wrapper import MultiTaskOptimWrapper

__all__ = [
    'CheckpointHook',
    'InterruptHook',
    'Interrupted',
    'MetricsFileHook',
    'MultiTaskOptimWrapper',
    'ResumeHook',
    'SelectionHook',
    'storage',
]
