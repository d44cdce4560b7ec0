"""Nothing is kept from one iteration to the next: the tool that measures it, and a short run of some methods."""

import gc
import importlib
import json
import sys

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import DefaultScope

from mmrepmtl.registry import HOOKS
from tests.tools.harness import ROOT, python

FOLDER = ROOT / 'tools' / 'analysis_tools'
#: One for each way through the engine: a penalty in a plain backward, rows of gradients, a second look after the step.
METHODS = ['rep-mtl', 'pcgrad', 'famo']


@pytest.fixture(scope='module')
def tool():
    sys.path.insert(0, str(FOLDER))
    gc.freeze()  # every reading collects, and need not go through all that was imported
    yield importlib.import_module('long_run')
    gc.unfreeze()
    sys.path.remove(str(FOLDER))
    del sys.modules['long_run']


@pytest.fixture(autouse=True)
def _scope():
    yield
    DefaultScope._instance_dict.clear()


def growth(rows: list[dict], key: str) -> float:
    return rows[-1][key] - rows[0][key]


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('method', METHODS)
def test_nothing_is_kept_per_iteration(tool, method, tmp_path, monkeypatch):
    """In 120 iterations with validations and checkpoints in between; every object that is kept would be 60 more."""
    monkeypatch.setattr('mmrepmtl.engine.hooks.LogHistoryHook.__init__.__defaults__', (20,))
    rows = tool.run_method(method, 120, 30, tmp_path / 'run', epoch=30, pictures=False)
    assert [row['iteration'] for row in rows] == [30, 60, 90, 120]
    rows = rows[1:]  # the first validation and the first checkpoint are behind
    assert growth(rows, 'tensors') == 0 and growth(rows, 'fds') == 0 and growth(rows, 'threads') == 0
    assert growth(rows, 'objects') < 30
    # Two validations have a value of each metric, and every tenth iteration diagnostics; the others would be 600.
    assert growth(rows, 'history') < 150
    assert growth(rows[1:], 'checkpoint') < 2000  # the first one knows no validation yet
    lines = [b['log'] - a['log'] for a, b in zip(rows, rows[1:], strict=False)]
    assert max(lines) < 1.2 * min(lines)


@HOOKS.register_module()
class Hoarder(Hook):
    """Keeps something of every iteration."""

    kept: list = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Keeps a tensor and an open file."""
        self.kept += [torch.zeros(1), open('/dev/null')]


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
def test_what_is_kept_is_found(tool, tmp_path, monkeypatch):
    whole = tool.make_config

    def hoarding(*args, **kwargs):
        cfg = whole(*args, **kwargs)
        cfg.custom_hooks.append(dict(type='Hoarder'))
        return cfg

    monkeypatch.setattr(tool, 'make_config', hoarding)
    rows = tool.run_method('ew', 60, 10, tmp_path / 'run', epoch=20, pictures=False)
    found, bad = tool.judge(rows, 20)
    assert found['tensors'] == pytest.approx(100, abs=5) and found['fds'] == pytest.approx(100, abs=5)
    for file in Hoarder.kept[1::2]:
        file.close()
    Hoarder.kept.clear()
    assert any(sentence.startswith('tensors grows by') for sentence in bad)
    assert any(sentence.startswith('fds grows by') for sentence in bad)


def readings(**slopes) -> list[dict]:
    """Readings of a run in which the named columns grow by so much per 100 iterations."""
    flat = dict(rss=500.0, tensors=100, objects=1000, fds=10, threads=1, history=500, log=0, checkpoint=10_000)
    return [
        dict(iteration=i, **{key: value + slopes.get(key, 0) * i / 100 for key, value in flat.items()})
        for i in range(100, 2001, 100)
    ]


def test_a_flat_run_is_flat(tool):
    found, bad = tool.judge(readings(log=1000, rss=0.2, history=14), 1000)
    assert bad == [] and found['log'] == pytest.approx(1000) and found['rss'] == pytest.approx(0.2)


@pytest.mark.parametrize(
    'column, slope', dict(rss=1, tensors=1, objects=20, fds=1, threads=1, history=200, checkpoint=3000).items()
)
def test_each_column_can_fail_a_run(tool, column, slope):
    _, bad = tool.judge(readings(**{column: slope}), 1000)
    assert len(bad) == 1 and bad[0].startswith(f'{column} grows by {slope:.2f} per 100 iterations')


def test_a_log_that_grows_ever_faster_fails_a_run(tool):
    rows = readings()
    for row in rows:
        row['log'] = row['iteration'] ** 2
    assert 'bytes per iteration and then by' in tool.judge(rows, 1000)[1][0]


def test_too_few_readings_are_refused(tool):
    with pytest.raises(ValueError, match='2 readings after 1800 iterations of warm-up'):
        tool.judge(readings(), 1800)


def test_unknown_methods_are_refused(tool, capsys):
    with pytest.raises(SystemExit):
        tool.parse_args(['--methods', 'nothing'])
    assert "unknown methods ['nothing']; there are " in capsys.readouterr().err
    assert 'rep-mtl' in tool.parse_args([]).methods and 'stl' not in tool.parse_args([]).methods


@pytest.mark.slow
def test_the_command_prints_a_table_and_leaves_the_readings(tmp_path):
    """In a process of its own: the tool forks, which this one with its threads must not."""
    file = tmp_path / 'readings.json'
    arguments = ['--methods', 'ew', '--iterations', '100', '--every', '10', '--warmup', '20', '--json', file]
    ended = python('analysis_tools/long_run.py', *arguments, check=False)
    assert 'growth per 100 iterations, after 20 of 100' in ended.stdout and '\new ' in ended.stdout, ended.stderr
    assert ended.returncode in (0, 1)  # so short a run is still warming up
    assert len(json.loads(file.read_text())['ew']) == 10
