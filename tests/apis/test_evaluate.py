"""Results of a test are kept whatever comes after it, and anything that would spoil them is found before."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
import torch

from mmrepmtl.apis import evaluate, load_config
from mmrepmtl.apis import evaluate as evaluate_function
from mmrepmtl.evaluation import check_baseline, load_baseline, load_results, save_results
from mmrepmtl.registry import MODELS
from tests.apis.toy import ROOT

module = sys.modules[evaluate_function.__module__]
GOOD = {
    'semseg/mIoU': 10.0,
    'semseg/pixAcc': 20.0,
    'depth/abs_err': 1.0,
    'depth/rel_err': 0.5,
    'normal/mean': 40.0,
    'normal/median': 30.0,
    'normal/within_11.25': 10.0,
    'normal/within_22.5': 20.0,
    'normal/within_30': 30.0,
}


def config(work_dir: Path, name: str):
    return load_config(ROOT / 'tests/tools/tiny.py', work_dir=str(work_dir), cfg_options=dict(experiment_name=name))


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('checkpoint') / 'weights.pth'
    torch.manual_seed(0)
    torch.save(dict(state_dict=MODELS.build(config(path.parent, 'made').model).state_dict(), meta=dict(epoch=1)), path)
    return path


@pytest.fixture
def untested(monkeypatch) -> None:
    """A test that begins is an error."""
    monkeypatch.setattr(module.Runner, 'test', lambda self: pytest.fail('the test began'))


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('test_tool', ROOT / 'tools/test.py')
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


DAMAGED = dict(
    cut=b'{"metrics": {"semseg/mIoU": 10.0, "dep',
    empty=b'',
    text=b'not JSON\n',
    list=b'[1, 2]',
    other=b'{"accuracy": 3}',
    texts=b'{"metrics": {"semseg/mIoU": "10"}}',
    truth=b'{"metrics": {"semseg/mIoU": true}}',
    nested=b'{"metrics": {"semseg/mIoU": [1]}}',
    meta=b'{"metrics": {"semseg/mIoU": 1}, "meta": [1]}',
    deep=b'[' * 100_000,
    latin='{"metrics": {"semseg/mIoU é": 1}}'.encode('latin-1'),
    zeros=bytes(500),
)


@pytest.mark.parametrize('kind', [*DAMAGED, 'missing', 'folder'])
def test_a_damaged_baseline_ends_the_tool_before_the_test(tool, tmp_path, monkeypatch, untested, checkpoint, kind):
    path = tmp_path / 'stl.json'
    if kind == 'folder':
        path.mkdir()
    elif kind != 'missing':
        path.write_bytes(DAMAGED[kind])
    arguments = [ROOT / 'tests/tools/tiny.py', checkpoint, '--stl', path, '--work-dir', tmp_path / 'work']
    monkeypatch.setattr(sys, 'argv', ['test.py', *map(str, arguments)])
    with pytest.raises(SystemExit, match=r'^test: error: (?s:.)*stl.json') as ended:
        tool.main()
    assert '\n' not in str(ended.value) and not (tmp_path / 'work').exists()


@pytest.mark.parametrize(
    'change, message',
    [
        ({'depth/abs_err': None}, "'depth/abs_err' is missing in the baseline"),
        ({'depth/abs_err': math.nan}, "'depth/abs_err' is nan in the baseline"),
        ({'depth/abs_err': 0.0}, "'depth/abs_err' is 0.0 in the baseline"),
        ({'depth/abs_err': math.inf}, "'depth/abs_err' is inf in the baseline"),
        ({'pose/mae': 3.0}, "'pose/mae' is missing in the metrics"),
        (dict.fromkeys(GOOD), 'is missing in the baseline, which have nothing'),
    ],
)
def test_a_baseline_of_other_metrics_is_found_before_the_test(tmp_path, untested, checkpoint, change, message):
    stl = {key: value for key, value in (GOOD | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        evaluate(config(tmp_path, f'other {message[:20]}'), checkpoint, stl)


def test_check_baseline_without_knowing_the_metrics():
    check_baseline(GOOD | {'depth/rmse': math.nan, 'avg/mIoU': math.nan})  # these do not count
    with pytest.raises(ValueError, match="'a/mIoU' is -1.0 in the baseline"):
        check_baseline({'a/mIoU': -1.0})
    with pytest.raises(ValueError, match="direction of metric 'a/new' is unknown"):
        check_baseline({'a/new': 1.0})


def test_folders_that_cannot_be_written_to_are_found_before_the_test(tmp_path, untested, checkpoint):
    (tmp_path / 'file').touch()
    with pytest.raises(ValueError, match='show: cannot be written to, since .*file is a file'):
        evaluate(config(tmp_path / 'work', 'show'), checkpoint, show_dir=tmp_path / 'file/show')
    with pytest.raises(ValueError, match='work: cannot be written to, since .*file is a file'):
        evaluate(config(tmp_path / 'file/work', 'work'), checkpoint)


def fail(*_, **__):
    raise RuntimeError('a step broke')


def test_every_step_may_fail_and_the_metrics_stay(tmp_path, monkeypatch, checkpoint):
    for name in ('_deltas', '_constants', '_draw'):
        monkeypatch.setattr(module, name, fail)
    with pytest.raises(ValueError, match='the test is done and its metrics are in .*test_metrics.json') as caught:
        evaluate(config(tmp_path, 'steps'), checkpoint, GOOD, show_dir=tmp_path / 'show')
    for step in ('Delta p', 'the best constant predictions', 'the pictures'):
        assert f'{step} failed: a step broke' in str(caught.value)
    metrics, meta = load_results(tmp_path / 'test_metrics.json')
    assert GOOD.keys() <= metrics.keys() and meta['epoch'] == 1 and meta['constant'] == {}


def test_the_metrics_are_written_before_the_constants_are_computed(tmp_path, monkeypatch, checkpoint):
    def killed(cfg):
        assert GOOD.keys() <= load_results(tmp_path / 'test_metrics.json')[0].keys()
        raise KeyboardInterrupt

    monkeypatch.setattr(module, '_constants', killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(config(tmp_path, 'early'), checkpoint, GOOD)
    assert 'delta_m' in load_results(tmp_path / 'test_metrics.json')[1]


def test_metrics_that_cannot_be_written_are_printed(tmp_path, monkeypatch, checkpoint, capsys):
    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(module, 'save_results', full)
    with pytest.raises(ValueError, match='its metrics are on the terminal, but writing .* No space left on device'):
        evaluate(config(tmp_path, 'full'), checkpoint, constant=False)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith('metrics: '))
    assert GOOD.keys() <= json.loads(line.removeprefix('metrics: ')).keys()


@pytest.mark.parametrize('content', [b'', b'{"source": ', b'[]', b'{"source": 3}', b'\xff\xfe'])
def test_damaged_constants_are_computed_anew(tmp_path, monkeypatch, content, capsys):
    cfg = config(tmp_path, 'constants')
    monkeypatch.setattr(module, 'fit_constants', lambda *_: {})
    monkeypatch.setattr(module, 'evaluate_constants', lambda *_: {'semseg/mIoU': 5.0})
    (tmp_path / 'constants.json').write_bytes(content)
    assert module._constants(cfg) == {'semseg/mIoU': 5.0}
    assert json.loads((tmp_path / 'constants.json').read_text())['metrics'] == {'semseg/mIoU': 5.0}
    monkeypatch.setattr(module, 'fit_constants', fail)
    assert module._constants(cfg) == {'semseg/mIoU': 5.0}  # remembered


def test_damaged_results_are_named(tmp_path):
    for kind, content in DAMAGED.items():
        (tmp_path / f'{kind}.json').write_bytes(content)
        with pytest.raises(ValueError, match=f'{kind}.json is not a results file'):
            load_baseline(tmp_path / f'{kind}.json')
    save_results(tmp_path / 'good.json', GOOD)
    assert load_baseline(tmp_path / 'good.json') == GOOD
