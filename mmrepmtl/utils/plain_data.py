"""What a checkpoint may hold besides tensors and plain containers, rebuilt without calling what the file names.

``torch.load(weights_only=True)`` builds tensors, numbers, strings and containers, and calls only what it was told is
safe. NumPy's own rebuilding functions are not: a dtype or an array takes any state, and one made up for the purpose has
NumPy follow pointers out of the file. Stand-ins take the place of those functions here. They keep what the file says,
check it, and :func:`settle` turns them into the real objects once the file is read.
"""

import argparse
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
from torch.torch_version import TorchVersion

#: NumPy types without pointers or fields: booleans, integers, floating point and complex numbers, text, times.
_PLAIN_DTYPE = re.compile(r'[<>|=]?(b1|[iu][1248]|f(2|4|8|12|16)|c(8|16|24|32)|[SU]\d{1,9}|[mM]8(\[\w{1,12}\])?)')

_STAND_INS: list[Any] = []


def _stands_for(*names: str) -> Callable:
    """Puts the decorated class, or copies of the decorated function, where a pickle asks for one of the names.

    torch compares a name in a file with ``__module__`` and ``__qualname__`` of what is allowed.
    """

    def register(stand_in: Any) -> Any:
        for name in names:
            copy = stand_in if isinstance(stand_in, type) else (lambda *args: stand_in(*args))
            copy.__module__, copy.__qualname__ = name.rsplit('.', 1)
            _STAND_INS.append(copy)
        return stand_in

    return register


class _StandIn:
    """An object of the file that is not built yet."""

    settled: Any = None

    def settle(self, visit: Callable[[Any], Any]) -> Any:
        raise NotImplementedError


@_stands_for('numpy.dtype')
class _Dtype(_StandIn):
    def __init__(self, text: str = '', align: bool = False, copy: bool = False) -> None:
        if not isinstance(text, str) or not _PLAIN_DTYPE.fullmatch(text):
            raise UnpicklingError(f'GLOBAL numpy.dtype({text!r}) is no type of plain numbers or text')
        self.dtype = np.dtype(text)

    def __setstate__(self, state: tuple) -> None:
        _version, order, *structure = state[:5]
        if order not in ('<', '>', '|', '=') or any(part is not None for part in structure):
            raise UnpicklingError('GLOBAL numpy.dtype with fields is no type of plain numbers or text')
        if len(state) > 8 and self.dtype.kind in 'mM':  # the unit of times, such as (b'ns', 1, 1, 1)
            unit, count = state[8][1][:2]
            self.dtype = np.dtype(f'{self.dtype.kind}8[{int(count)}{bytes(unit).decode("ascii")}]')
        # By its text, so that the order of this machine becomes NumPy's own way to say so.
        self.dtype = np.dtype(self.dtype.newbyteorder(order).str)

    def settle(self, visit: Callable[[Any], Any]) -> np.dtype:
        return self.dtype


def _plain_dtype(kind: Any) -> np.dtype:
    """The type behind a stand-in; or a real one, if somebody allowed NumPy's own for the whole process."""
    dtype = kind.dtype if isinstance(kind, _Dtype) else kind
    if not isinstance(dtype, np.dtype) or not _PLAIN_DTYPE.fullmatch(dtype.str):
        raise UnpicklingError(f'GLOBAL numpy.dtype({dtype}) is no type of plain numbers or text')
    return dtype


@_stands_for('numpy.ndarray')
class _Array(_StandIn):
    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: tuple) -> None:
        shape, kind, fortran, raw = state[-4:]
        dtype = _plain_dtype(kind)
        flat = np.frombuffer(raw, dtype) if len(raw) else np.empty(0, dtype)
        self.array = flat.reshape(shape, order='F' if fortran else 'C').copy(order='K')

    def settle(self, visit: Callable[[Any], Any]) -> np.ndarray:
        return self.array


@_stands_for('numpy.core.multiarray._reconstruct', 'numpy._core.multiarray._reconstruct')
def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    return _Array()


@_stands_for('numpy.core.multiarray.scalar', 'numpy._core.multiarray.scalar')
def _scalar(kind: Any, raw: bytes) -> np.generic:
    dtype = _plain_dtype(kind)
    return np.frombuffer(raw, dtype, 1)[0] if dtype.itemsize else dtype.type()


@_stands_for('mmengine.logging.history_buffer.HistoryBuffer')
class _History(_StandIn):
    """mmengine's log buffer, which is pickled with its methods."""

    def __setstate__(self, state: dict) -> None:
        self.state = state

    def settle(self, visit: Callable[[Any], Any]) -> Any:
        from mmengine.logging import HistoryBuffer

        log, count = (visit(self.state[key]) for key in ('_log_history', '_count_history'))
        return HistoryBuffer(log, count, int(self.state['max_length']))


@_stands_for('builtins.getattr')
def _getattr(owner: Any, name: Any) -> str:
    """The methods in a log buffer, which its class has anyway; their names suffice."""
    if owner is not _History or not isinstance(name, str):
        raise UnpicklingError('GLOBAL builtins.getattr is allowed for the log buffers of mmengine only')
    return f'HistoryBuffer.{name}'


@_stands_for('collections.defaultdict')
def _defaultdict(factory: Any = None) -> dict:
    return {}


@_stands_for('mmengine.config.config.ConfigDict')
def _config_dict(items: Any = ()) -> dict:
    return dict(items)


@_stands_for(*(f'pathlib{place}.{kind}Path' for place in ('', '._local') for kind in ('Posix', 'Windows')))
@_stands_for(*(f'pathlib{place}.Pure{kind}Path' for place in ('', '._local') for kind in ('Posix', 'Windows')))
def _path(*parts: Any) -> Path:
    if not all(isinstance(part, str) for part in parts):
        raise UnpicklingError('GLOBAL pathlib.Path of something else than text')
    return Path(*parts)


#: Types of Python and torch that do nothing but hold what they are given.
_HOLDERS = (argparse.Namespace, TorchVersion, bool, bytes, dict, float, frozenset, int, list, range, slice, str, tuple)


def allowed_globals() -> list:
    """What ``torch.serialization.safe_globals`` is given, beyond what torch itself allows."""
    return [*_STAND_INS, *_HOLDERS]


def settle(content: Any) -> Any:
    """Replaces the stand-ins in what was read, in place where containers allow it.

    Args:
        content: What ``torch.load`` returned with :func:`allowed_globals`.

    Raises:
        pickle.UnpicklingError: A stand-in lies where only something hashable can.
    """
    visited: set[int] = set()

    def visit(value: Any) -> Any:
        if isinstance(value, _StandIn):
            if value.settled is None:
                value.settled = value.settle(visit)
            return value.settled
        if type(value) is tuple:
            parts = tuple(map(visit, value))
            return parts if any(new is not old for new, old in zip(parts, value, strict=True)) else value
        if id(value) in visited:
            return value
        visited.add(id(value))
        if isinstance(value, dict):
            for key in value:
                if visit(key) is not key:
                    raise UnpicklingError(f'GLOBAL {type(key).__module__}.{type(key).__qualname__} as a key')
                value[key] = visit(value[key])
        elif isinstance(value, list):
            value[:] = map(visit, value)
        if isinstance(value, OrderedDict | argparse.Namespace):
            visit(vars(value))
        return value

    return visit(content)
