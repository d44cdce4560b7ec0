"""Delta p against the published tables, and results files.

The numbers are facts from the tables of the paper (Rep-MTL, arXiv 2507.21049): NYUv2 whole, of the others the rows that
are compared with their printed Delta p.
"""

import json
import math
import os

import pytest

from mmrepmtl.evaluation import (
    ARI,
    delta_m,
    delta_p,
    delta_p_metric,
    delta_p_task,
    higher_is_better,
    is_better,
    load_baseline,
    load_results,
    save_results,
)

NYUV2_KEYS = (
    'semseg/mIoU',
    'semseg/pixAcc',
    'depth/abs_err',
    'depth/rel_err',
    'normal/mean',
    'normal/median',
    'normal/within_11.25',
    'normal/within_22.5',
    'normal/within_30',
)
# Method, the nine metrics, printed delta_p_task, printed delta_p_metric.
NYUV2 = """
STL,53.50,75.39,0.3926,0.1605,21.99,15.16,39.04,65.00,75.16,0.00,0.00
EW,53.93,75.53,0.3825,0.1577,23.57,17.01,35.04,60.99,72.05,-1.78,-3.85
GLS,54.59,76.06,0.3785,0.1555,22.71,16.07,36.89,63.11,73.81,0.30,-1.10
RLW,54.04,75.58,0.3827,0.1588,23.07,16.49,36.12,62.08,72.94,-1.10,-2.64
UW,54.29,75.64,0.3815,0.1583,23.48,16.92,35.26,61.17,72.21,-1.52,-3.54
DWA,54.06,75.64,0.3820,0.1564,23.70,17.11,34.90,60.74,71.81,-1.71,-3.96
IMTL-L,53.89,75.54,0.3834,0.1591,23.54,16.98,35.09,61.06,72.12,-1.92,-3.90
IGBv2,54.61,76.00,0.3817,0.1576,22.68,15.98,37.14,63.25,73.87,0.05,-1.15
MGDA,53.52,74.76,0.3852,0.1566,22.74,16.00,37.12,63.22,73.84,-0.64,-1.65
GradNorm,53.91,75.38,0.3842,0.1571,23.17,16.62,35.80,61.90,72.84,-1.24,-2.90
PCGrad,53.94,75.62,0.3804,0.1578,23.52,16.93,35.19,61.17,72.19,-1.57,-3.60
GradDrop,53.73,75.54,0.3837,0.1580,23.54,16.96,35.17,61.06,72.07,-1.85,-3.84
GradVac,54.21,75.67,0.3859,0.1583,23.58,16.91,35.34,61.15,72.10,-1.75,-3.72
IMTL-G,53.01,75.04,0.3888,0.1603,23.08,16.43,36.24,62.23,73.06,-1.89,-3.09
CAGrad,53.97,75.54,0.3885,0.1588,22.47,15.71,37.77,63.82,74.30,-0.27,-0.98
MTAdam,52.67,74.86,0.3873,0.1583,23.26,16.55,36.00,61.92,72.74,-1.97,-3.36
Nash-MTL,53.41,74.95,0.3867,0.1612,22.57,15.94,37.30,63.40,74.09,-1.01,-1.76
MetaBalance,53.92,75.57,0.3901,0.1594,22.85,16.16,36.72,62.91,73.62,-1.06,-2.15
MoCo,52.25,74.56,0.3920,0.1622,22.82,16.24,36.58,62.72,73.49,-2.25,-3.03
Aligned-MTL,52.94,75.00,0.3884,0.1570,22.65,16.07,36.88,63.18,73.94,-0.98,-1.92
FairGrad,53.01,75.14,0.3795,0.1573,22.51,16.02,36.93,63.39,74.17,-0.47,-1.46
STCH,53.86,75.49,0.3759,0.1547,22.69,16.17,36.70,62.96,73.82,0.06,-1.35
IMTL,53.63,75.44,0.3868,0.1592,22.58,15.85,37.44,63.52,74.09,-0.57,-1.38
DB-MTL,53.92,75.60,0.3768,0.1557,21.97,15.37,38.43,64.81,75.24,1.15,0.56
Rep-MTL,54.59,76.04,0.3750,0.1542,21.91,15.28,38.37,64.72,75.05,1.70,0.95
"""
NYUV2_ROWS = {row.split(',')[0]: [float(cell) for cell in row.split(',')[1:]] for row in NYUV2.split()}


def nyuv2(method):
    return dict(zip(NYUV2_KEYS, NYUV2_ROWS[method][:9], strict=True))


@pytest.mark.parametrize('method', NYUV2_ROWS)
def test_reproduces_the_nyuv2_table(method):
    # Rounding of the printed metrics moves Delta p by up to 0.01 to 0.02.
    *_, task, metric = NYUV2_ROWS[method]
    assert delta_p(nyuv2(method), nyuv2('STL')) == pytest.approx(task, abs=0.02)
    assert delta_p(nyuv2(method), nyuv2('STL'), mode='metric') == pytest.approx(metric, abs=0.02)


def test_headline_numbers_to_the_last_digit():
    for method, task, metric in [('Rep-MTL', 1.70, 0.95), ('EW', -1.78, -3.85)]:
        assert round(delta_p_task(nyuv2(method), nyuv2('STL')), 2) == task
        assert round(delta_p_metric(nyuv2(method), nyuv2('STL')), 2) == metric


@pytest.mark.parametrize(
    ('stl', 'row', 'value'),
    [
        # Cityscapes: semseg mIoU, pixAcc, depth abs_err, rel_err (its printed digits allow 0.02).
        ([69.06, 91.54, 0.01282, 43.53], [69.72, 91.85, 0.01270, 43.42], 0.62),  # Rep-MTL
        ([69.06, 91.54, 0.01282, 43.53], [68.93, 91.58, 0.01315, 45.90], -2.05),  # EW
        # Office-31, top-1 of Amazon, DSLR, Webcam. Rep-MTL's row is printed as +1.31: a misprint.
        ([86.61, 95.63, 96.85], [83.53, 97.27, 96.85], -0.61),  # EW
        ([86.61, 95.63, 96.85], [85.93, 98.54, 98.67], 1.38),  # Rep-MTL
        # Office-Home, Art, Clipart, Product, Real World. IMTL-G's printed -1.10 repeats IMTL-L's: a misprint.
        ([65.59, 79.60, 90.47, 80.00], [67.40, 78.75, 90.37, 80.04], 0.41),  # Rep-MTL
        ([65.59, 79.60, 90.47, 80.00], [64.70, 77.17, 89.61, 79.45], -1.51),  # IMTL-G
    ],
)
def test_rows_of_the_other_tables(stl, row, value):
    cityscapes = stl[2] < 1
    keys = NYUV2_KEYS[:4] if cityscapes else [f'domain{index}/top1' for index in range(len(stl))]
    model, baseline = (dict(zip(keys, values, strict=True)) for values in (row, stl))
    assert delta_p(model, baseline) == pytest.approx(value, abs=0.02)


def test_two_modes_by_hand():
    baseline = {'a/mIoU': 50.0, 'a/pixAcc': 80.0, 'b/abs_err': 2.0}
    model = {'a/mIoU': 55.0, 'a/pixAcc': 84.0, 'b/abs_err': 1.6}  # +10 %, +5 %, error -20 %
    assert delta_p(model, baseline) == pytest.approx((7.5 + 20) / 2)
    assert delta_p(model, baseline, mode='metric') == pytest.approx(35 / 3)
    assert ARI(model, baseline) == delta_p_task(model, baseline) == delta_p(model, baseline)
    assert delta_m(model, baseline) == -delta_p_metric(model, baseline) == -delta_p(model, baseline, 'metric')
    assert delta_p(baseline, baseline) == 0


def test_rmse_counts_only_if_asked():
    baseline, model = {'d/abs_err': 1.0, 'd/rmse': 1.0}, {'d/abs_err': 0.9, 'd/rmse': 2.0}
    assert delta_p(model, baseline) == pytest.approx(10)
    assert delta_p(model, baseline, keys=['d/abs_err', 'd/rmse']) == pytest.approx((10 - 100) / 2)


def test_directions():
    assert delta_p({'a/new': 2.0}, {'a/new': 1.0}, directions={'new': False}) == pytest.approx(-100)
    assert delta_p({'a/new': 2.0}, {'a/new': 1.0}, directions={'new': False, 'a/new': True}) == pytest.approx(100)
    with pytest.raises(ValueError, match=r"direction of metric 'a/new' is unknown: pass directions=\{'new'"):
        delta_p({'a/new': 2.0}, {'a/new': 1.0})
    assert higher_is_better('a/b/mIoU') and not higher_is_better('a/mean')
    assert is_better('a/mean', 1, 2) and not is_better('a/mean', 2, 2) and not is_better('a/mean', math.nan, 2)


@pytest.mark.parametrize(
    ('model', 'baseline', 'message'),
    [
        ({'a/mIoU': 1.0}, {'a/mIoU': 1.0, 'b/mIoU': 1.0}, "'b/mIoU' is missing in the metrics"),
        ({'a/mIoU': 1.0, 'b/mIoU': 1.0}, {'a/mIoU': 1.0}, "'b/mIoU' is missing in the baseline"),
        ({'a/mIoU': 1.0}, {'a/mIoU': 0.0}, "'a/mIoU' is 0.0 in the baseline"),
        ({'a/mIoU': 1.0}, {'a/mIoU': -1.0}, "'a/mIoU' is -1.0 in the baseline"),
        ({'a/mIoU': math.nan}, {'a/mIoU': 1.0}, "'a/mIoU' is nan in the metrics"),
        ({'a/mIoU': 1.0}, {'a/mIoU': math.inf}, "'a/mIoU' is inf in the baseline"),
        ({'mIoU': 1.0}, {'mIoU': 1.0}, "'task/metric', but one is 'mIoU'"),
        ({}, {}, 'no metric to compare'),
    ],
)
def test_errors_name_the_metric(model, baseline, message):
    with pytest.raises(ValueError, match=message):
        delta_p(model, baseline)


def test_unknown_mode():
    with pytest.raises(ValueError, match="'task' and 'metric', not 'tasks'"):
        delta_p({'a/mIoU': 1.0}, {'a/mIoU': 1.0}, mode='tasks')


def test_results_files_round_trip(tmp_path):
    path = tmp_path / 'runs' / 'results.json'
    save_results(path, {'a/mIoU': 54.59, 'b/mean': math.nan}, {'checkpoint': 'last', 'seed': 3})
    assert json.loads(path.read_text()) == {
        'metrics': {'a/mIoU': 54.59, 'b/mean': None},
        'meta': {'checkpoint': 'last', 'seed': 3},
    }
    metrics, meta = load_results(path)
    assert metrics['a/mIoU'] == 54.59 and math.isnan(metrics['b/mean']) and meta['seed'] == 3
    assert os.listdir(path.parent) == ['results.json']


@pytest.mark.parametrize('step', ['fsync', 'replace'])
def test_a_failing_write_keeps_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / 'results.json'
    save_results(path, {'a/mIoU': 1.0})

    def full(*_):
        raise OSError('disk full')

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match='disk full'):
        save_results(path, {'a/mIoU': 2.0})
    monkeypatch.undo()
    with pytest.raises(TypeError):
        save_results(path, {'a/mIoU': 3.0}, {'not JSON': object()})
    assert load_results(path)[0] == {'a/mIoU': 1.0} and os.listdir(tmp_path) == ['results.json']


def test_baseline_from_one_file_per_single_task_run(tmp_path):
    save_results(tmp_path / 'a.json', {'a/mIoU': 1.0})
    save_results(tmp_path / 'b.json', {'b/mean': 2.0})
    assert load_baseline(tmp_path / 'a.json', tmp_path / 'b.json') == {'a/mIoU': 1.0, 'b/mean': 2.0}
    with pytest.raises(ValueError, match='earlier baseline file holds too: a/mIoU'):
        load_baseline(tmp_path / 'a.json', tmp_path / 'a.json')
    with pytest.raises(ValueError, match='at least one'):
        load_baseline()


@pytest.mark.parametrize('text', ['no json', '[]', '{"metric": {}}', '{"metrics": {"a/mIoU": "x"}}', '{"metrics": 3}'])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / 'x.json'
    path.write_text(text)
    with pytest.raises(ValueError, match='is not a results file'):
        load_baseline(path)
