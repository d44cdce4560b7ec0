from .metrics_file import MetricsFileHook
from .optim_wrapper import MultiTaskOptimWrapper
from .selection import SelectionHook
from .state import ResumeHook

__all__ = ['MetricsFileHook', 'MultiTaskOptimWrapper', 'ResumeHook', 'SelectionHook']
