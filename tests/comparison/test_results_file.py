"""The file of a comparison's numbers: read back as it was written, and clear about what is wrong in it."""

import dataclasses
import math

import pytest

from mmrepmtl.comparison.results_file import COLUMNS, read_results, write_results
from tests.comparison.harness import ROW


def test_rows_are_read_as_they_were_written(tmp_path):
    constant = dataclasses.replace(
        ROW, label='constant', seed=None, step_seconds=None, train_seconds=None, higher_is_better=False
    )
    write_results(tmp_path / 'new' / 'results.csv', [ROW, constant])
    assert read_results(tmp_path / 'new' / 'results.csv') == [ROW, constant]
    write_results(tmp_path / 'nan.csv', [dataclasses.replace(ROW, value=math.nan)])
    assert math.isnan(read_results(tmp_path / 'nan.csv')[0].value)


@pytest.mark.parametrize(
    ('column', 'text', 'said'),
    [
        ('value', 'high', "value is 'high', expected a number"),
        ('seed', 'x', "seed is 'x', expected a whole number"),
        ('higher_is_better', 'yes', "higher_is_better is 'yes', expected 0 or 1"),
        ('sweep', 'c=1', "sweep is 'c=1', expected JSON"),
    ],
)
def test_a_damaged_value_is_named_with_its_line(tmp_path, column, text, said):
    path = tmp_path / 'results.csv'
    values = dataclasses.asdict(ROW) | dict(higher_is_better=1, peak_memory_mib='', label='ew') | {column: text}
    write = ','.join('"' + str(values[name]).replace('"', '""') + '"' for name in COLUMNS)
    path.write_text(f'{",".join(COLUMNS)}\n{write}\n')
    with pytest.raises(ValueError, match=said) as error:
        read_results(path)
    assert f'{path}: line 2' in str(error.value)


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / 'other.csv'
    path.write_text('label,seed\new,0\n')
    with pytest.raises(ValueError, match='no results file of mmrepmtl compare, it has no column method'):
        read_results(path)
    path.write_text(f'{",".join(COLUMNS)}\new,0\n')
    with pytest.raises(ValueError, match='line 2: there are not 18 columns'):
        read_results(path)
