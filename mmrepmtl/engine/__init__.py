from .hooks import MetricsFileHook, ResumeHook, SelectionHook
from .optim_wrapper import MultiTaskOptimWrapper
from .schemes import register_schemes

__all__ = ['MetricsFileHook', 'MultiTaskOptimWrapper', 'ResumeHook', 'SelectionHook']

register_schemes()
