from .interrupt import Interrupted, InterruptHook
from .log_history import LogHistoryHook
from .metrics_file import MetricsFileHook
from .progress import ProgressHook
from .ranks import RanksHook
from .resume import ResumeHook
from .saving import CheckpointHook
from .selection import SelectionHook

__all__ = [
    'CheckpointHook',
    'InterruptHook',
    'Interrupted',
    'LogHistoryHook',
    'MetricsFileHook',
    'ProgressHook',
    'RanksHook',
    'ResumeHook',
    'SelectionHook',
]
