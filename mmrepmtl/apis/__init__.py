from .config import available_methods, load_config
from .evaluate import evaluate
from .train import train, train_single_tasks

__all__ = ['available_methods', 'evaluate', 'load_config', 'train', 'train_single_tasks']
