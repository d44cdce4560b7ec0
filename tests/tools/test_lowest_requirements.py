"""tools/misc/lowest_requirements.py: what `make test-lowest` installs."""

import importlib.util
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

TOOL = Path(__file__).resolve().parents[2] / 'tools/misc/lowest_requirements.py'
spec = importlib.util.spec_from_file_location('lowest_requirements', TOOL)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)

THERE = {'a': ['0.9', '1.0.3', '1.1', '2.0.1', '3.0'], 'b': ['1.0']}


def versions_of(name: str) -> list[Version]:
    return [Version(text) for text in THERE[name]]


def test_the_lowest_that_all_requirements_allow_and_that_there_is():
    requirements = [Requirement(text) for text in ('a>=1.0,<3', 'b', 'a>2')]
    assert tool.lowest(requirements[:2], versions_of) == {'a': Version('1.0.3'), 'b': Version('1.0')}
    assert tool.lowest(requirements, versions_of) == {'a': Version('2.0.1'), 'b': Version('1.0')}
    with pytest.raises(ValueError, match=r'a: no version fits .*>3'):
        tool.lowest([*requirements, Requirement('a>3')], versions_of)


def test_the_files_are_read_with_those_that_they_include():
    names = [requirement.name for requirement in tool.read_requirements('dev')]
    assert {'pytest', 'onnx', 'ruff'} <= set(names)
    assert Requirement('numpy>2,<3') in tool.read_requirements('mm')
