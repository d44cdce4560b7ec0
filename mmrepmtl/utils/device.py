import argparse

import torch


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """The device that is meant, after checking that this machine has it.

    Args:
        device: Such as 'cpu', 'cuda' or 'cuda:1'; None: a GPU where there is one, else the CPU.

    Raises:
        ValueError: It is no device, or none that this machine has; says what there is.
    """
    if device is None:
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError, ValueError):
        raise ValueError(f'device {device!r} is unknown; this machine has {_there_are()}') from None
    if found.type == 'cuda':
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        there = (found.index or 0) < count
    elif found.type == 'cpu':
        there = not found.index
    elif found.type == 'mps':
        there = torch.backends.mps.is_available()
    else:
        there = _computes(found)
    if not there:
        raise ValueError(f'device {str(device)!r} is not on this machine, which has {_there_are()}')
    return found


def device_argument(text: str) -> str:
    """The ``type`` of a tool's option --device: the text itself, if this machine has the device."""
    try:
        resolve_device(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _there_are() -> str:
    names = ['cpu']
    if torch.cuda.is_available():
        names += [f'cuda:{index}' for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append('mps')
    return ', '.join(names)


def _computes(device: torch.device) -> bool:
    """Whether numbers come back from a device of a rarer kind; 'meta', for one, has none."""
    # Each backend refuses in its own way, down to AssertionError and ModuleNotFoundError.
    try:
        return float(torch.ones(1, device=device).sum()) == 1
    except Exception:
        return False
