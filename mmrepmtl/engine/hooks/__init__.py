from .checkpoint import CheckpointHook
from .interrupt import Interrupted, InterruptHook
from .metrics_file import MetricsFileHook
from .resume import ResumeHook
from .selection import SelectionHook

__all__ = ['CheckpointHook', 'InterruptHook', 'Interrupted', 'MetricsFileHook', 'ResumeHook', 'SelectionHook']
