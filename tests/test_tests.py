"""The tests themselves: helpers live in modules that are no tests."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FILES = sorted(path.relative_to(TESTS).as_posix() for path in TESTS.rglob('*.py'))


def imported_modules(code: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f'{"." * node.level}{node.module or ""}.{alias.name}' for alias in node.names}
    return found


def modules_of_tests(code: str) -> list[str]:
    """Those that belong to a ``test_*`` file of ours: its fixtures and settings would come with the helper."""
    return sorted(name for name in imported_modules(code) if name.startswith(('tests.', '.')) and '.test_' in name)


@pytest.mark.parametrize('file', FILES)
def test_no_test_imports_from_another(file):
    assert modules_of_tests((TESTS / file).read_text(encoding='utf-8')) == []


def test_an_import_from_a_test_is_found():
    code = (
        'from tests.engine.test_state import config\nfrom tests.engine import test_state as s\nfrom . import harness\n'
        'from .test_state import config\n'
    )
    assert len(modules_of_tests(code)) == 3
