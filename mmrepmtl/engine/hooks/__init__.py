from .log_history import LogHistoryHook
from .metrics_file import MetricsFileHook
from .resume import ResumeHook
from .selection import SelectionHook

__all__ = ['LogHistoryHook', 'MetricsFileHook', 'ResumeHook', 'SelectionHook']
