"""The commands of ``mmrepmtl``: one module each, with ``parse_args(argv, prog)`` and ``main(argv, prog)``.

What several of them take is in ``arguments.py``. This file imports the standard library only, so that
``mmrepmtl --help`` need not wait for torch (see mmrepmtl_cli.py).
"""

import difflib
import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

COMMANDS = {
    'train': 'train a model from a config: --method, --resume, --work-dir, ...',
    'test': 'evaluate a checkpoint: metrics, the best constants beside them, Delta p, pictures',
    'infer': 'predict all tasks on images, folders and videos',
    'check': 'read all data of a config and compare its parts before a training',
    'browse': 'draw what the network is fed: samples after augmentation',
    'saliency': "draw each task's saliency, the ownership map and CSA's similarities",
    'analyse': "the paper's analyses: spectrum, cost, conflict, ablation, sensitivity, time",
    'export': 'write a trained model as an ONNX file that was compared with PyTorch',
    'demo': 'serve a web page: a picture in, all tasks and their saliency out',
    'methods': 'list the methods that --method takes',
    'compare': 'train and test methods over seeds, then write the table and the report',
    'quickstart': 'train Rep-MTL on the embedded data set in minutes, then test it',
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``mmrepmtl COMMAND ...``.

    Args:
        argv: The arguments; None: those of the process.

    Returns:
        The exit status: 2 for an unknown command.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    first = arguments[0] if arguments else '--help'
    if first in ('-h', '--help', 'help'):
        print(usage())
        return 0 if arguments else 2
    if first in ('-V', '--version'):
        print(f'mmrepmtl {version()}')
        return 0
    if first not in COMMANDS:
        near = difflib.get_close_matches(first, COMMANDS, n=1, cutoff=0.4)
        hint = f'; did you mean {near[0]}?' if near else f'; there are {", ".join(COMMANDS)}'
        print(f'mmrepmtl: there is no command {first!r}{hint}', file=sys.stderr)
        return 2
    command = importlib.import_module(f'mmrepmtl.cli.{first}')
    return command.main(arguments[1:], prog=f'mmrepmtl {first}') or 0


def usage() -> str:
    """Returns the text of ``mmrepmtl --help``."""
    lines = [f'  {name:<11} {line}' for name, line in COMMANDS.items()]
    return '\n'.join(
        [
            'usage: mmrepmtl COMMAND [arguments]; mmrepmtl COMMAND --help says which',
            '',
            'Multi-task learning with Rep-MTL, on PyTorch and mmengine.',
            '',
            *lines,
            '',
            'A CONFIG is a file, or the name of one of this package, such as synth_rooms/quickstart.',
            'mmrepmtl --version says which version this is.',
        ]
    )


def version() -> str:
    """The version of the package, read from its file."""
    text = (Path(__file__).parents[1] / 'version.py').read_text(encoding='utf-8')
    found = re.search(r"^__version__ = '([^']+)'$", text, flags=re.MULTILINE)
    assert found is not None
    return found.group(1)
