import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

#: Where checkpoints of common trainers keep the weights.
_NESTS = ('state_dict', 'model', 'model_state_dict')


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Reads weights from a local file without running code from it.

    Args:
        path: A ``.safetensors`` file, or a file of ``torch.save`` that holds a state dict, also nested under
            ``state_dict``, ``model`` or ``model_state_dict`` and with DistributedDataParallel's ``module.`` prefix.

    Raises:
        ValueError: The file does not exist, is not such a file, or holds objects other than tensors and plain
            containers (which could run code when they are loaded).
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f'Checkpoint {path} does not exist')
    content = _read_safetensors(path) if path.suffix == '.safetensors' else _read_torch(path)
    for nest in _NESTS:
        if isinstance(content, dict) and isinstance(content.get(nest), dict):
            content = content[nest]
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(
            f'Checkpoint {path} holds no state dict (parameter name -> tensor), neither at its top level '
            f'nor under one of {list(_NESTS)}'
        )
    return {key.removeprefix('module.'): value for key, value in content.items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f'Checkpoint {path} is not a readable safetensors file: {error}') from error


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f'Checkpoint {path} was refused: it is damaged, or holds objects other than tensors, which '
            'could run code when they are loaded. Save the state dict alone, e.g. '
            "torch.save(model.state_dict(), 'weights.pth'), where you trust the file. "
            f'PyTorch says: {str(error).splitlines()[0]}'
        ) from error
