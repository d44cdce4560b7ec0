"""Names of the objects that a pickle asks for, read off its instructions without following them."""

import pickletools
import re
import zipfile
from typing import IO, Any, BinaryIO

#: A legacy file is a row of pickles: number, version, system, content, storages.
_MAX_PICKLES = 5


#: The names that every file of ``torch.save`` asks for.
_USUAL = re.compile(
    r'torch\._utils\._rebuild_\w+|torch\.(storage\.)?\w*Storage|collections\.OrderedDict|_codecs\.encode'
)

#: Protocols up to 2 name modules as Python 2 did.
_PYTHON_3 = {'__builtin__': 'builtins', 'commands': 'subprocess', 'copy_reg': 'copyreg'}


def modern(name: str) -> str:
    """``module.name`` as Python 3 has it."""
    module, _, rest = name.partition('.')
    return f'{_PYTHON_3.get(module, module)}.{rest}' if rest else f'builtins.{name}'


def foreign_objects(file: BinaryIO) -> list[str]:
    """``module.name`` of what a file of ``torch.save`` imports besides the parts of tensors, as far as it can be read.

    Args:
        file: The file, open; a zip archive or a pickle.
    """
    return [name for name in _all_names(file) if not _USUAL.fullmatch(name)]


def _all_names(file: BinaryIO) -> list[str]:
    file.seek(0)
    if file.read(4) == b'PK\x03\x04':
        with zipfile.ZipFile(file) as archive:
            record = next((name for name in archive.namelist() if name.endswith('data.pkl')), None)
            if record is None:
                return []
            with archive.open(record) as stream:
                return _names(stream)
    file.seek(0)
    return [name for _ in range(_MAX_PICKLES) for name in _names(file)]


def _names(stream: IO[bytes]) -> list[str]:
    names: list[str] = []
    texts: list[str] = []  # strings in the order in which they were pushed, which STACK_GLOBAL takes two of
    memo: dict[int, str | None] = {}
    last: str | None = None
    argument: Any  # its type depends on the instruction
    try:
        for instruction, argument, _ in pickletools.genops(stream):
            kind = instruction.name
            if kind in ('GLOBAL', 'INST'):
                names.append(modern(argument.replace(' ', '.', 1)))
            elif kind == 'STACK_GLOBAL':
                names.append('.'.join(texts[-2:]))
            elif kind == 'MEMOIZE':
                memo[len(memo)] = last
                continue
            elif 'PUT' in kind:
                memo[argument] = last
                continue
            last = memo.get(argument) if 'GET' in kind else argument if isinstance(argument, str) else None
            if last is not None and kind not in ('GLOBAL', 'INST'):
                texts.append(last)
    except ValueError:  # the end of what is a pickle
        pass
    return names
