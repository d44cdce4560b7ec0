"""Objects whose unpickling runs code, which leaves a file behind."""

import builtins
import io
import os
import subprocess
from pathlib import Path
from typing import Any

import torch


class Call:
    """Calls ``function(*arguments)`` when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def _nested(marker: Path) -> Call:
    """A whole file of torch.save in bytes, as torch pickles storages."""
    buffer = io.BytesIO()
    torch.save(Call(open, str(marker), 'w'), buffer)
    return Call(torch.storage._load_from_bytes, buffer.getvalue())


def payloads(marker: Path) -> dict[str, Any]:
    """{the name that a refusal gives: an object that writes ``marker``}."""
    touch = f'open({str(marker)!r}, "w").close()'
    return {
        'posix.system': Call(os.system, f'touch {marker}'),
        'builtins.eval': Call(eval, touch),
        'builtins.exec': Call(exec, touch),
        'subprocess.Popen': Call(subprocess.Popen, ['touch', str(marker)]),
        'io.open': Call(open, str(marker), 'w'),
        'builtins.getattr': Call(getattr, Call(__import__, 'os'), 'system'),
        'builtins.__import__': Call(builtins.__import__, 'antigravity'),
        'torch.serialization.load': Call(torch.load, str(marker)),
        'torch.storage._load_from_bytes': _nested(marker),
        'torch.nn.modules.linear.Identity': torch.nn.Identity(),
    }


def hostile(path: Path, marker: Path, **content: Any) -> Path:
    """Writes a checkpoint that makes ``marker`` when something unpickles it; returns ``path``."""
    torch.save(dict(content, extra=Call(os.makedirs, str(marker), 0o777, True)), path)
    return path


def config_text(marker: Path) -> str:
    """The text of a config that makes ``marker`` when something evaluates it."""
    return f'open({str(marker)!r}, "w").close()\nmodel = dict()\n'
