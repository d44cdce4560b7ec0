"""Files of data sets and results are data: a pickle among them is refused, not read."""

import pickle

import numpy as np
import pytest

from mmrepmtl.datasets.readers import read_mat, read_npy
from mmrepmtl.evaluation import load_results
from tests.utils.payloads import Call


@pytest.mark.parametrize('form', ['array of objects', 'pickle'])
@pytest.mark.parametrize('read', [lambda path: read_npy(path, 'numbers'), lambda path: read_mat(path, 'numbers')])
def test_arrays_run_nothing(tmp_path, form, read):
    path, call = tmp_path / 'a.npy', Call(open, str(tmp_path / 'marker'), 'w')
    if form == 'pickle':
        path.write_bytes(pickle.dumps(call))
    else:
        np.save(path, np.array([call], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match='a.npy: cannot be read as'):
        read(str(path))
    assert not (tmp_path / 'marker').exists()


def test_results_run_nothing(tmp_path):
    (tmp_path / 'stl.json').write_bytes(pickle.dumps(Call(open, str(tmp_path / 'marker'), 'w')))
    with pytest.raises(ValueError):
        load_results(tmp_path / 'stl.json')
    assert not (tmp_path / 'marker').exists()
