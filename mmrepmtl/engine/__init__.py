from .hooks import MetricsFileHook, ResumeHook, SelectionHook
from .optim_wrapper import MultiTaskOptimWrapper

__all__ = ['MetricsFileHook', 'MultiTaskOptimWrapper', 'ResumeHook', 'SelectionHook']
