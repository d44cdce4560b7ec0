"""Hooks of mmengine's Runner: checkpoints, exact resume, metrics, selection, and runs of several processes."""

from .interrupt import Interrupted, InterruptHook
from .log_history import LogHistoryHook
from .metrics_file import MetricsFileHook
from .ranks import RanksHook
from .resume import ResumeHook
from .saving import CheckpointHook
from .screen import ProgressHook
from .selection import SelectionHook
from .task_gradients import TaskGradientsHook

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
    'TaskGradientsHook',
]
