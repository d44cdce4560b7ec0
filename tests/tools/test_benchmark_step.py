import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'analysis_tools' / 'benchmark_step.py'
TINY = ['--model', 'test_resnet', '--size', '32', '32', '--batch', '2', '--heads', 'conv', '--rounds', '2', '--warmup',
        '1', '--threads', '1']


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('benchmark_step', TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def run(tool, tmp_path):
    threads = torch.get_num_threads()

    def run(*arguments: str) -> dict:
        tool.main([*TINY, *arguments, '--json', str(tmp_path / 'made' / 'steps.json')])
        return json.loads((tmp_path / 'made' / 'steps.json').read_text())

    yield run
    torch.set_num_threads(threads)


def numbers(tree) -> list[float]:
    """All numbers in nested dicts."""
    if isinstance(tree, dict):
        return [number for value in tree.values() for number in numbers(value)]
    return [tree] if isinstance(tree, (int, float)) else []


@pytest.mark.filterwarnings('ignore:RepMTL. CSA on 2 samples')
def test_table_and_file_have_a_row_per_method(run, tool, tmp_path, capsys):
    at_representation = tmp_path / 'pcgrad-z.py'
    config = Config.fromfile(tool.METHODS_FOLDER / 'pcgrad.py')
    config.optim_wrapper.aggregator.level = 'representation'
    config.dump(at_representation)
    methods = ['plain', 'ew', 'ew-log', 'rep-mtl', 'pcgrad', str(at_representation)]

    report = run('--methods', *methods)

    assert list(report['methods']) == methods
    assert {name: row['counted_cost'] for name, row in report['methods'].items()} == {
        'plain': '3 F_h + 3 F_e', 'ew': '3 F_h + 3 F_e', 'ew-log': '3 F_h + 3 F_e', 'rep-mtl': '6 F_h + 3 F_e',
        'pcgrad': '3 F_h + 7 F_e', str(at_representation): '3 F_h + 3 F_e'}
    found = numbers(report['methods']) + numbers(report['forward_ms'])
    assert len(found) > 6 * 14 and all(math.isfinite(number) and number > 0 for number in found)
    assert report['methods']['ew']['to_ew'] == dict(q1=1, median=1, q3=1)
    assert all(row['peak_mib'] is None for row in report['methods'].values())
    table = capsys.readouterr().out
    for method in methods:
        assert sum(line.startswith(f'{method} ') and '|' in line for line in table.splitlines()) == 1
    assert "ew over mmengine's OptimWrapper" in table and 'load average' in table


def test_the_reference_is_always_measured_and_bf16_works_on_a_cpu(run):
    report = run('--methods', 'plain', '--precision', 'bf16', '--clock', 'process')
    assert list(report['methods']) == ['plain', 'ew']
    assert report['setup']['precision'] == 'bf16'


def test_ratios_are_made_within_rounds(tool):
    """A machine that becomes ten times slower halfway changes no ratio."""
    def contestant(seconds, counted=None):
        return tool.Contestant(run=None, counted=counted, seconds=[seconds, seconds, 10 * seconds, 10 * seconds])

    rows = tool.evaluate(dict(
        encoder=contestant(1.0), heads=contestant(2.0), plain=contestant(9.0, (3, 3)), ew=contestant(10.0, (3, 3)),
        method=contestant(24.0, (6, 3))))
    same = dict.fromkeys(('q1', 'median', 'q3'))
    assert rows['method']['to_ew'] == pytest.approx(same | dict.fromkeys(same, 2.4))
    assert rows['method']['counted_to_ew'] == pytest.approx(15 / 9)
    assert rows['method']['to_counted_by_ew']['median'] == pytest.approx(2.4 / (15 / 9))
    assert rows['method']['to_counted_by_f'] == pytest.approx(dict.fromkeys(same, 24 / 15))
    assert rows['ew']['to_plain'] == pytest.approx(dict.fromkeys(same, 10 / 9))
    assert rows['method']['least_ms'] == pytest.approx(24000)


def test_every_method_comes_first_and_follows_different_ones(tool):
    names = ['a', 'b', 'c', 'd']
    orders = [tool.order_of_round(names, number) for number in range(-3, 8)]
    assert all(sorted(order) == names for order in orders)
    for place in range(4):
        assert sorted(order[place] for order in orders[3:7]) == names
    followers = {(one, other) for order in orders for one, other in zip(order, order[1:], strict=False)}
    assert {('a', 'b'), ('b', 'a')} <= followers


@pytest.mark.parametrize(('method', 'message'), [
    ('rep-mlt', r"no method 'rep-mlt'; there are plain, .*rep-mtl"),
    ('stl', "'stl' trains one model per task"),
])
def test_a_method_without_a_comparable_step_is_named(run, method, message):
    with pytest.raises(ValueError, match=message):
        run('--methods', method)


def test_a_regulariser_of_unknown_cost_is_refused(run, tool, tmp_path):
    config = Config.fromfile(tool.METHODS_FOLDER / 'rep-mtl.py')
    config.optim_wrapper.regularizers[0].interval = 2
    config.dump(tmp_path / 'lazy.py')
    with pytest.raises(ValueError, match='interval=1'):
        run('--methods', str(tmp_path / 'lazy.py'))


def test_the_process_clock_is_for_one_thread_on_a_cpu(tool, capsys):
    with pytest.raises(SystemExit):
        tool.main(['--clock', 'process', '--threads', '2'])
    assert '--clock process needs --threads 1' in capsys.readouterr().err
