from .metrics_file import MetricsFileHook
from .resume import ResumeHook
from .selection import SelectionHook

__all__ = ['MetricsFileHook', 'ResumeHook', 'SelectionHook']
