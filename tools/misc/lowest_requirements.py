#!/usr/bin/env python
"""Prints the lowest versions that requirements/NAME.txt allow and the registry has, one `NAME==VERSION` a line.

python tools/misc/lowest_requirements.py runtime mm tests > lowest.txt
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

REQUIREMENTS = Path(__file__).resolve().parents[2] / 'requirements'


def read_requirements(name: str) -> list[Requirement]:
    """The requirements of requirements/``name``.txt and of the files that it includes."""
    found = []
    for line in (REQUIREMENTS / f'{name}.txt').read_text(encoding='utf-8').splitlines():
        line = line.split('#')[0].strip()
        if line.startswith('-r '):
            found += read_requirements(line.removeprefix('-r ').strip().removesuffix('.txt'))
        elif line:
            found.append(Requirement(line))
    return found


def available(name: str) -> list[Version]:
    """The versions of a package that pip could install with this Python.

    Raises:
        ValueError: pip found none.
    """
    command = [sys.executable, '-m', 'pip', '--disable-pip-version-check', 'index', 'versions', name]
    printed = subprocess.run(command, capture_output=True, text=True).stdout
    match = re.search(r'^Available versions: (.+)$', printed, flags=re.MULTILINE)
    if match is None:
        raise ValueError(f'{name}: pip found no version of it')
    return sorted(Version(text.strip()) for text in match.group(1).split(','))


def lowest(requirements: list[Requirement], versions_of=available) -> dict[str, Version]:
    """{package: the lowest version that all of its requirements allow}.

    Args:
        requirements: Several of one package may be there.
        versions_of: From a name to the versions that there are, ascending.

    Raises:
        ValueError: A package has no version that fits.
    """
    chosen = {}
    for name in dict.fromkeys(requirement.name for requirement in requirements):
        specifiers = [requirement.specifier for requirement in requirements if requirement.name == name]
        fitting = (version for version in versions_of(name) if all(version in specifier for specifier in specifiers))
        chosen[name] = next(fitting, None)
        if chosen[name] is None:
            raise ValueError(f'{name}: no version fits {" and ".join(map(str, specifiers))}')
    return chosen


def main() -> None:
    """Prints one line ``NAME==VERSION`` for each package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='+', help='files of requirements/, without .txt')
    names = parser.parse_args().names
    for package, version in lowest([r for name in names for r in read_requirements(name)]).items():
        print(f'{package}=={version}')


if __name__ == '__main__':
    main()
