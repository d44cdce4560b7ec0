"""The step of training, and the hooks around it: what makes a method act inside mmengine's Runner."""

from . import storage
from .hooks import CheckpointHook, Interrupted, InterruptHook, MetricsFileHook, ResumeHook, SelectionHook
from .optim_wrapper import MultiTaskOptimWrapper
from .schemes import register_schemes
from .separate import MultiTaskOptimWrapperDict, SeparateOptimizers

__all__ = [
    'CheckpointHook',
    'InterruptHook',
    'Interrupted',
    'MetricsFileHook',
    'MultiTaskOptimWrapper',
    'MultiTaskOptimWrapperDict',
    'ResumeHook',
    'SelectionHook',
    'SeparateOptimizers',
    'storage',
]

register_schemes()
