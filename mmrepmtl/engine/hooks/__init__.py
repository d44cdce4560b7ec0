from .interrupt import Interrupted, InterruptHook
from .log_history import LogHistoryHook
from .metrics_file import MetricsFileHook
from .ranks import RanksHook
from .resume import ResumeHook
from .saving import CheckpointHook
from .selection import SelectionHook
from .task_gradients import TaskGradientsHook

__all__ = [
    'CheckpointHook',
    'InterruptHook',
    'Interrupted',
    'LogHistoryHook',
    'MetricsFileHook',
    'RanksHook',
    'ResumeHook',
    'SelectionHook',
    'TaskGradientsHook',
]
