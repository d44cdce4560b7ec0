from .metrics_file import MetricsFileHook
from .optim_wrapper import MultiTaskOptimWrapper
from .state import ResumeHook

__all__ = ['MetricsFileHook', 'MultiTaskOptimWrapper', 'ResumeHook']
