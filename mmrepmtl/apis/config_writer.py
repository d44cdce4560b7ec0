"""The config in a work directory: mmengine sorts its keys, and the order of heads is that of their weights."""

import ast
import keyword
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmengine.fileio import dump
from mmengine.runner import Runner

from mmrepmtl.utils.files import whole_file

WIDTH, INDENT = 120, 4


def rewrite_config(runner: Runner) -> None:
    """Writes the config of a run once more, over mmengine's file, with its keys in their order.

    A model is built in the order of its heads, and the state of an optimizer counts parameters. The file of mmengine
    stays where the config holds what no file can.

    Args:
        runner: After it was built, which writes mmengine's file.
    """
    name = Path(runner.cfg.filename).name if runner.cfg.filename is not None else f'{runner.timestamp}.py'
    file, content = Path(runner.work_dir, name), runner.cfg.to_dict()
    if file.suffix in ('.yaml', '.yml'):
        dump(content, str(file), sort_keys=False)
    elif file.suffix == '.py':
        text = config_text(content)
        if text is not None:
            with whole_file(file) as stream:
                stream.write(text.encode())


def config_text(content: Mapping[str, Any]) -> str | None:
    """A config as Python text that gives it again, in its order.

    Args:
        content: Of a config, with names for lazy objects (``Config.to_dict``).

    Returns:
        None if a value cannot be written.
    """
    if not all(_is_name(key) for key in content):
        return None
    text = ''.join(f'{key} = {_text(value, len(key) + 3, 0)}\n' for key, value in content.items())
    try:
        ast.parse(text)
    except SyntaxError:  # an object has no text that can be read back, such as <function at 0x...>
        return None
    return text


def _is_name(key: Any) -> bool:
    return isinstance(key, str) and key.isidentifier() and not keyword.iskeyword(key)


def _text(value: Any, used: int, indent: int) -> str:
    """On one line if there is room after so many characters; else a line for each part."""
    if isinstance(value, Mapping):
        names = all(_is_name(key) for key in value)
        parts = [(f'{key}=' if names else f'{key!r}: ', part) for key, part in value.items()]
        start, end = ('dict(', ')') if names else ('{', '}')
    elif isinstance(value, list | tuple) and type(value) in (list, tuple):
        parts = [('', part) for part in value]
        start, end = ('[', ']') if isinstance(value, list) else ('(', ')')
    else:
        return _atom(value)
    inside = indent + INDENT
    texts = [label + _text(part, inside + len(label), inside) for label, part in parts]
    line = start + ', '.join(texts) + (',' if start == '(' and len(texts) == 1 else '') + end
    if '\n' not in line and used + len(line) <= WIDTH:
        return line
    return f'{start}\n' + _lines(texts, inside) + ' ' * indent + end


def _lines(texts: Iterable[str], indent: int) -> str:
    return ''.join(f'{" " * indent}{text},\n' for text in texts)


def _atom(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    if isinstance(value, type):  # as mmengine writes it
        return value.__name__ if value.__module__ == 'builtins' else f'{value.__module__}.{value.__name__}'
    return repr(value) if value is None or isinstance(value, str | bytes | bool | int | float) else str(value)
