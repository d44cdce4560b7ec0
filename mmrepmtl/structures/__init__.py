from .multi_task_data_sample import MultiTaskDataSample

__all__ = ['MultiTaskDataSample']
