"""Checkpoints are read without running code from them."""

from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch


def _numpy_globals() -> list:
    """NumPy's numbers and arrays, which mmengine puts beside the tensors; none of it runs code."""
    multiarray = np._core.multiarray if hasattr(np, '_core') else np.core.multiarray
    kinds = (np.float64, np.float32, np.int64, np.int32, np.uint8, np.bool_)
    return [multiarray._reconstruct, multiarray.scalar, np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in kinds)]


def load_checkpoint(path: str | Path, trust: bool = False) -> dict:
    """Loads a checkpoint on the CPU.

    Args:
        path: The file.
        trust: Load anything, code included, because the user said so.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, holds something else than a checkpoint, or needs code to be run; names it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'there is no checkpoint {path}')
    try:
        with torch.serialization.safe_globals(_numpy_globals()):
            checkpoint = torch.load(path, map_location='cpu', weights_only=not trust)
    except UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if 'Unsupported' in line), str(error).splitlines()[0])
        raise ValueError(
            f'the checkpoint {path} is refused: {reason.strip()[:300]}. Loading it could run code; if you trust '
            'where it comes from, pass --trust-checkpoint'
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError) as error:
        raise ValueError(f'the checkpoint {path} is damaged or no checkpoint: {error}') from error
    if not isinstance(checkpoint, dict) or 'state_dict' not in checkpoint:
        raise ValueError(f'{path} is no checkpoint of mmengine: it has no state_dict')
    return checkpoint
