"""The types in a config: named, named with their module, or given as the class itself (pure-Python configs)."""

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from mmengine.config import ConfigDict
from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.registry import Registry
from mmengine.utils import get_object_from_string

Lazy = LazyAttr | LazyObject


def find_type(kind: Any, registry: Registry) -> Callable | None:
    """Resolves the value of ``type`` in a config: a class, or any other callable.

    Args:
        kind: A name that is registered, a dotted name, a class, a function, a ``functools.partial``, or a lazy object
            of mmengine's pure-Python configs.
        registry: The registry in which names are looked up.

    Returns:
        None if nothing has that name.
    """
    if isinstance(kind, Lazy):
        kind = kind.build()
    if isinstance(kind, str):
        return registry.get(kind) if kind else None
    return kind if callable(kind) else None


def is_type(kind: Any, registry: Registry, base: type) -> bool:
    """Whether the value of ``type`` in a config is ``base`` or a class derived from it."""
    found = _unwrapped(find_type(kind, registry))
    return inspect.isclass(found) and issubclass(found, base)


def type_name(kind: Any) -> str:
    """The plain name of what a config builds, however the config says it; '' for None."""
    if kind is None:
        return ''
    if isinstance(kind, str | Lazy):
        return str(kind).rpartition('.')[2]
    return getattr(_unwrapped(kind), '__name__', type(kind).__name__)


def plain_data(value: Any) -> Any:
    """Settings as data that JSON knows, the same for each way to write the same config.

    Types become their plain names; tuples become lists; the marks of mmengine's inheritance are left out.
    """
    if isinstance(value, dict):
        items = ((key, part) for key, part in value.items() if key != '_scope_')
        return {str(key): type_name(part) if _is_type_key(key, part) else plain_data(part) for key, part in items}
    if isinstance(value, list | tuple):
        return [plain_data(part) for part in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return type_name(value) if callable(value) or isinstance(value, Lazy) else str(value)


def name_types(cfg: Any, path: str = '') -> None:
    """Writes each ``type`` of a config as a dotted name; changes ``cfg``.

    mmengine writes a class into the config of a work directory as a bare name, which cannot be read back. A
    ``functools.partial`` becomes its class with its arguments. Classes and functions that are arguments become lazy
    objects of mmengine: a config gives the object, its file the name.

    Args:
        cfg: A config or a part of one.
        path: Dotted key of that part.

    Raises:
        ValueError: A type that cannot be imported, or has no name that a file can hold; names the key.
    """
    for key, value in _raw_items(cfg):
        name = f'{path}.{key}' if path else str(key)
        if path and isinstance(cfg, dict) and _is_type_key(key, value) and not isinstance(value, str):
            _name_type(cfg, value, name)
        elif isinstance(value, dict | list | tuple):
            name_types(value, name)
        elif isinstance(cfg, ConfigDict) and (inspect.isclass(value) or inspect.isroutine(value)):
            dotted = _dotted(value)
            if dotted is not None:
                module, _, attribute = dotted.rpartition('.')
                dict.__setitem__(cfg, key, LazyObject(module, attribute))


def _is_type_key(key: Any, value: Any) -> bool:
    """Whether an item says what is built; a task may be named 'type', too."""
    return key == 'type' and (isinstance(value, str | Lazy) or callable(value)) and not isinstance(value, dict)


def _raw_items(cfg: Any) -> Iterator[tuple[Any, Any]]:
    """Keys and values without building lazy objects, which only mmengine's own ``items`` does."""
    if isinstance(cfg, dict):
        yield from list(dict.items(cfg))
    elif isinstance(cfg, list | tuple):
        yield from enumerate(cfg)
    else:
        yield from list(dict.items(cfg._cfg_dict))


def _name_type(cfg: dict, kind: Any, key: str) -> None:
    if isinstance(kind, Lazy):
        try:
            built = kind.build()
        except (ImportError, AttributeError) as error:
            raise ValueError(f'{key}: {error}') from error
        full_name = f'{kind.module}.{kind}'
        # An object that cannot be found by its name is kept.
        dict.__setitem__(cfg, 'type', full_name if _finds(full_name, built) else built)
        return
    if isinstance(kind, partial):
        if kind.args or _dotted(kind.func) is None:
            raise ValueError(
                f'{key}: {kind} has no name that a config file can hold; define it in a module, or give its class and '
                'named arguments'
            )
        for argument, value in kind.keywords.items():
            if argument not in cfg:
                cfg[argument] = value
        kind = kind.func
    name = _dotted(kind)
    if name is not None:
        dict.__setitem__(cfg, 'type', name)
    elif not inspect.isclass(kind):
        raise ValueError(f'{key}: {kind} has no name that a config file can hold; define it at the top of a module')


def _dotted(kind: Any) -> str | None:
    """The name by which mmengine finds an object again, or None."""
    name = f'{getattr(kind, "__module__", None)}.{getattr(kind, "__qualname__", None)}'
    return name if _finds(name, kind) else None


def _finds(name: str, kind: Any) -> bool:
    try:
        return get_object_from_string(name) is kind
    # An import runs code of others; whatever goes wrong there, the name does not lead to the object.
    except Exception:
        return False


def _unwrapped(kind: Any) -> Any:
    while isinstance(kind, partial):
        kind = kind.func
    return kind


def drop_imported(cfg: Any) -> None:
    """Leaves out the names that a config imported, its modules, functions and classes; changes ``cfg``."""
    imported = getattr(cfg, '_imported_names', None) or set()
    inner: ConfigDict = cfg._cfg_dict
    for key, value in _raw_items(inner):
        if isinstance(value, dict):
            continue
        if key in imported or isinstance(value, Lazy) or inspect.ismodule(value) or callable(value):
            dict.__delitem__(inner, key)
