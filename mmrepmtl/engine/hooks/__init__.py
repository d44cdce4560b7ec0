from .log_history import LogHistoryHook
from .metrics_file import MetricsFileHook
from .ranks import RanksHook
from .resume import ResumeHook
from .selection import SelectionHook

__all__ = ['LogHistoryHook', 'MetricsFileHook', 'RanksHook', 'ResumeHook', 'SelectionHook']
