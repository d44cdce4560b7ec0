"""The letters that end the names of tensors: each file says once what a letter counts."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

import mmrepmtl.methods

FOLDER = Path(mmrepmtl.methods.__file__).parent
FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob('*.py'))


def letters_used(text: str) -> set[str]:
    """Those of names such as ``gradients_TP``; digits stand for themselves."""
    names = {token.string for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type == 1}
    endings = [re.fullmatch(r'\w*[a-z0-9]_(?=[A-Z0-9]*[A-Z])([A-Z0-9]+)', name) for name in names]
    constants = {name for name in names if name.isupper()}
    return {letter for end in endings if end and end[0] not in constants for letter in end[1] if letter.isalpha()}


def legend(text: str) -> list[str]:
    found = re.search(r'Dimensions: (.*?)\.(?:\s|$)', ast.get_docstring(ast.parse(text)) or '', re.S)
    return re.findall(r'(?:^|, )([A-Z])\s', ' '.join(found[1].split())) if found else []


@pytest.mark.parametrize('file', FILES)
def test_every_letter_has_one_meaning(file):
    text = (FOLDER / file).read_text(encoding='utf-8')
    told = legend(text)
    assert len(told) == len(set(told))
    assert letters_used(text) <= set(told), 'letters that the legend of the file does not explain'


def test_a_letter_of_two_meanings_or_none_is_found():
    assert letters_used('gradients_TP = norms_2T[WITH_K] + f_C2(x)') == {'T', 'P', 'C'}
    assert legend('"""A file. Dimensions: T tasks, P elements\nof a row, P present tasks."""') == ['T', 'P', 'P']
