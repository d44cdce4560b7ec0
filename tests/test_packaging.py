"""Requirements, constraints and version: each said once, with its reason, and agreeing with one another."""

import ast
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from mmrepmtl.utils import stack
from mmrepmtl.version import __version__

ROOT = Path(__file__).parents[1]
RANGES = ('runtime', 'mm', 'mm-upstream', 'weights', 'analysis', 'demo', 'deploy', 'tests', 'dev')
OPENMMLAB = {name for names in stack.PROVIDERS.values() for name in names}
TRIED = ('runtime', 'mm', 'weights', 'analysis', 'demo', 'deploy', 'tests', 'dev')  # mm-upstream excludes mm


def read_lines(name: str) -> list[str]:
    """Return the lines of requirements/``name``.txt that are neither empty, nor a comment, nor ``-r``."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text(encoding='utf-8').splitlines()
    return [line for line in lines if line.strip() and not line.startswith(('#', '-r '))]


def read_constraints() -> dict[str, Version]:
    pinned = (line.split('==') for line in read_lines('constraints'))
    return {canonicalize_name(name): Version(version) for name, version in pinned}


@pytest.mark.parametrize('name', RANGES)
def test_each_requirement_has_bounds_and_a_reason(name: str) -> None:
    lines = read_lines(name)
    assert lines
    for line in lines:
        requirement, _, reason = line.partition('  # ')
        assert len(reason.split()) >= 3, f'requirements/{name}.txt: no reason beside {line!r}'
        assert Requirement(requirement).specifier, f'requirements/{name}.txt: no version range in {line!r}'


@pytest.mark.parametrize('name', TRIED)
def test_the_versions_tried_are_within_the_ranges(name: str) -> None:
    constraints = read_constraints()
    for line in read_lines(name):
        requirement = Requirement(line.partition('#')[0])
        tried = constraints[canonicalize_name(requirement.name)]
        assert tried in requirement.specifier, f'{requirement} excludes {tried}, which constraints.txt installs'


def test_both_builds_of_opencv_have_one_version() -> None:
    constraints = read_constraints()
    assert constraints['opencv-python'] == constraints['opencv-python-headless']


@pytest.fixture
def setup_arguments(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The arguments that setup.py hands to setuptools (which later Pythons no longer bring along)."""
    given: dict[str, object] = {}
    fake = SimpleNamespace(setup=lambda **arguments: given.update(arguments), find_packages=lambda include: include)
    monkeypatch.setitem(sys.modules, 'setuptools', fake)
    runpy.run_path(str(ROOT / 'setup.py'))
    return given


def test_setup_takes_version_and_requirements_from_their_files(setup_arguments: dict[str, object]) -> None:
    assert setup_arguments['version'] == __version__
    extras = setup_arguments['extras_require']
    assert set(extras) == {'mm', 'mm-upstream', 'weights', 'analysis', 'demo', 'deploy', 'docs', 'tests', 'dev'}
    listed = {name: [line.partition('#')[0].strip() for line in read_lines(name)] for name in RANGES}
    assert setup_arguments['install_requires'] == listed['runtime']
    assert extras['dev'] == listed['tests'] + listed['deploy'] + listed['dev']
    plain = ('mm', 'mm-upstream', 'weights', 'analysis', 'demo', 'deploy', 'tests')
    assert all(extras[name] == listed[name] for name in plain)
    assert not OPENMMLAB & {Requirement(line).name for line in setup_arguments['install_requires']}
    assert all(python in SpecifierSet(setup_arguments['python_requires']) for python in ('3.11.0', '3.12.0'))
    assert setup_arguments['long_description'] or not (ROOT / 'README.md').exists()


def test_every_folder_of_code_is_a_package() -> None:
    """A folder without ``__init__.py`` imports from a clone but is left out of an installed package."""
    folders = {path.parent for path in (ROOT / 'mmrepmtl').rglob('*.py')}
    assert not [folder for folder in sorted(folders) if not (folder / '__init__.py').is_file()]


def test_the_stack_check_knows_every_openmmlab_package_of_the_extras() -> None:
    named = {Requirement(line.partition('#')[0]).name for extra in ('mm', 'mm-upstream') for line in read_lines(extra)}
    assert {name for name in named if re.match(r'(onedl-)?mm', name)} <= OPENMMLAB


def imported_by(folder: Path) -> set[str]:
    """Return the top-level names of the third-party packages that the code in ``folder`` imports anywhere."""
    names = set()
    for path in folder.rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition('.')[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(node.module.partition('.')[0])
    return names - set(sys.stdlib_module_names) - {'mmrepmtl'}


def test_what_is_imported_is_asked_for() -> None:
    runtime = {Requirement(line.partition('#')[0]).name for line in read_lines('runtime')}
    from_torchvision, from_extras = {'PIL'}, {'mmengine', 'mmcv', 'mmseg', 'cv2', 'matplotlib', 'weightwatcher'}
    optional = [*read_lines('demo'), *read_lines('deploy')]
    from_extras |= {Requirement(line.partition('#')[0]).name for line in optional}
    assert imported_by(ROOT / 'mmrepmtl') <= runtime | from_torchvision | from_extras
    assert imported_by(ROOT / 'mmrepmtl' / 'methods') <= {'torch', 'torchjd'}


def test_no_file_names_a_registry() -> None:
    """The installs go to whatever registry the machine's pip is set up for."""
    files = [ROOT / 'setup.py', ROOT / 'Makefile', ROOT / '.ci' / 'run', *(ROOT / 'requirements').iterdir()]
    for file in files:
        found = re.search(r'https?://|--(extra-)?index-url|--find-links', file.read_text(encoding='utf-8'))
        assert found is None, f'{file.name} names {found.group()}'
