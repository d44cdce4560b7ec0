"""The random states of this process, as plain data."""

import random
from typing import Any

import numpy as np
import torch

from mmrepmtl.engine.aliases import State


def random_state() -> State:
    """Returns the states of Python's, NumPy's and torch's generators of this process, as plain data and tensors."""
    drawn = np.random.get_state(legacy=False)
    keys, place = drawn['state']['key'], drawn['state']['pos']
    version, internal, gauss = random.getstate()
    return dict(
        python=[version, list(internal), gauss],
        numpy=[
            drawn['bit_generator'],
            torch.from_numpy(keys.astype(np.int64)),
            place,
            drawn['has_gauss'],
            drawn['gauss'],
        ],
        torch=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    )


def is_random_state(state: Any) -> bool:
    """Whether this has the form and the sizes of the result of :func:`random_state`."""
    try:
        (version, internal, gauss), (name, keys, place, *rest) = state['python'], state['numpy']
        random.Random().setstate((version, tuple(internal), gauss))
        np.random.RandomState().set_state((name, keys.cpu().numpy().astype(np.uint32), place, *rest))
        torch.Generator().set_state(state['torch'].cpu())
        return state['cuda'] is None or bool(state['cuda'].dtype == torch.uint8)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError):
        return False


def set_random_state(state: State) -> None:
    """Restores :func:`random_state`."""
    version, internal, gauss = state['python']
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state['numpy']
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state['torch'].cpu())
    if state['cuda'] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())
