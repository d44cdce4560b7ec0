from .config import available_methods, describe_methods, finish_launch, load_config
from .config_file import available_configs, get_config
from .evaluate import evaluate
from .inferencer import InferenceResult, MultiTaskInferencer
from .select_checkpoint import apply_selection
from .train import train, train_single_tasks

__all__ = [
    'InferenceResult',
    'MultiTaskInferencer',
    'apply_selection',
    'available_configs',
    'available_methods',
    'describe_methods',
    'evaluate',
    'finish_launch',
    'get_config',
    'load_config',
    'train',
    'train_single_tasks',
]
