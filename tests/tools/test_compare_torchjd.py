"""tools/analysis_tools/compare_torchjd.py: what it calls an error, and what it prints where a solver is missing."""

import importlib.util
import re
import sys

import pytest
import torch

from tests.tools.harness import ROOT

pytest.importorskip('torchjd.aggregation', reason='torchjd is not installed')


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('compare', ROOT / 'tools/analysis_tools/compare_torchjd.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def printed(tool, monkeypatch, capsys, *arguments) -> dict[str, str]:
    """The rows, by method."""
    monkeypatch.setattr(sys, 'argv', ['compare_torchjd.py', *arguments])
    tool.main()
    lines = capsys.readouterr().out.splitlines()
    assert re.findall(r'\S+(?: \S+)*', lines[0]) == ['method', *tool.GROUPS, 'theirs, ms', 'ours, ms']
    return {line[:21].rstrip(): line[21:] for line in lines[1:]}


def test_a_row_has_the_largest_error_of_each_group(tool, monkeypatch, capsys):
    rows = printed(tool, monkeypatch, capsys, '--seeds', '1', '--methods', 'PCGrad', 'AlignedMTL')
    pcgrad, aligned = ([float(cell) for cell in row.split()] for row in rows.values())
    assert max(pcgrad[:3]) < 1e-9 and min(pcgrad) > 0
    assert max(aligned[:2]) < 1e-6 and aligned[2] > 0.1


def test_a_missing_solver_is_said(tool, monkeypatch, capsys):
    monkeypatch.setattr('torchjd._mixins.find_spec', lambda name: None)
    rows = printed(tool, monkeypatch, capsys, '--seeds', '1', '--methods', 'UPGrad', 'CAGrad', 'PCGrad')
    assert 'not measured' in rows['UPGrad'] and 'quadprog' in rows['UPGrad']
    assert 'not measured' in rows['CAGrad'] and 'clarabel' in rows['CAGrad']
    assert 'not measured' not in rows['PCGrad']


def test_errors_are_those_of_the_combined_gradient(tool, monkeypatch):
    gradients = torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    seen = []

    def theirs(gramian):
        seen.append(gramian)
        return torch.tensor([1.0, 2.0], dtype=torch.float64)

    def error(want, weights, solver=theirs):
        monkeypatch.setitem(tool.METHODS, 'MGDA', (solver, lambda rows: (torch.tensor(want), torch.tensor(weights))))
        return tool.compare('MGDA', gradients)[0]

    assert error([3.0, 4.0], [1.0, 1.0, 0.0]) == pytest.approx(4 / 5)
    assert len(seen[0]) == 2  # the absent task is no part of the problem
    # Ours cancels to nothing: in units of the largest that theirs adds up.
    assert error([0.0, 0.0], [0.0, 0.0, 0.0]) == pytest.approx((9 + 64) ** 0.5 / 8)
    assert error([3.0, 4.0], [1.0, 1.0, 0.0], lambda gramian: gramian[0] / 0) == float('inf')
    assert error([3.0, 4.0], [1.0, 1.0, 0.0], lambda gramian: torch.linalg.cholesky(-gramian)) == float('inf')
