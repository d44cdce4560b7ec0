from .kinds import KINDS, VOID, Kind, KindTable, find_kind, gaps, register_kind
from .multi_task_data_sample import MultiTaskDataSample

__all__ = ['KINDS', 'VOID', 'Kind', 'KindTable', 'MultiTaskDataSample', 'find_kind', 'gaps', 'register_kind']
