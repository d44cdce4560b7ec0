"""The console command ``mmrepmtl``: :func:`mmrepmtl.cli.main`, without importing the package before it has to.

Importing ``mmrepmtl`` registers all models, data sets and methods, which takes seconds; ``mmrepmtl --help`` needs none.
"""

import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path


def main() -> int:
    """Runs the command with the arguments of the process; returns its exit status."""
    file = Path(find_spec('mmrepmtl').origin).with_name('cli') / '__init__.py'
    spec = spec_from_file_location('_mmrepmtl_commands', file)
    commands = module_from_spec(spec)
    spec.loader.exec_module(commands)
    return commands.main()


if __name__ == '__main__':
    sys.exit(main())
