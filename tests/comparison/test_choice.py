"""--select-on val: the value that is best on the validation data, which the test numbers have no part in."""

import dataclasses
import math

import pytest

from mmrepmtl.apis.config import load_config
from mmrepmtl.comparison import choice
from mmrepmtl.comparison.plan import Options, load_contestants
from mmrepmtl.comparison.runs import make_runs
from tests.cli.harness import TINY, inherited
from tests.comparison.harness import ROW, variant

ENTRY = 'rep-mtl:lambda_tsr=0.1|0.9'
NYUV2 = 'nyuv2/rep-mtl_resnet18-d16_conv_b8-20e_nyuv2-96x128'
A, B = 'rep-mtl:lambda_tsr=0.1', 'rep-mtl:lambda_tsr=0.9'


def row(label, seed, value, split='val', metric='depth/abs_err'):
    changes = dict(label=label, seed=seed, split=split, metric=metric, value=value, higher_is_better=False)
    return dataclasses.replace(ROW, **changes, task=metric.partition('/')[0])


@pytest.fixture(scope='module')
def values():
    return load_contestants(str(TINY), [ENTRY], Options())


def test_the_highest_mean_delta_p_against_equal_weighting_of_the_same_seed(values):
    rows = [row('ew', 0, 1.0), row('ew', 1, 2.0), row(A, 0, 0.9), row(A, 1, 2.2), row(B, 0, 0.8), row(B, 1, 2.2)]
    # Better in the test by far, worse on the validation data.
    rows += [row(A, seed, 0.01, split='test') for seed in (0, 1)] + [row(B, seed, 9.0, split='test') for seed in (0, 1)]
    found = choice.choose(values, [0, 1], rows)
    assert found['chosen'] == B
    assert found['scores'][A] == pytest.approx([10, -10]) and found['scores'][B] == pytest.approx([20, -10])
    assert choice.describe(ENTRY, found).endswith(f'against ew: {A} +0.00 %, {B} +5.00 %')


def test_a_value_that_fails_on_a_task_is_not_chosen(values):
    rows = [row('ew', 0, 1.0), row(A, 0, math.nan), row(B, 0, 3.0)]
    found = choice.choose(values, [0], rows)
    hashes = {value.entry.label: value.config_hash for value in values}
    assert found == dict(chosen=B, scores={A: [None], B: pytest.approx([-200.0])}, hashes=hashes)
    with pytest.raises(ValueError, match='no value of .* has finite metrics'):
        choice.choose(values, [0], [row('ew', 0, 1.0), row(A, 0, math.nan), row(B, 0, math.nan)])


def test_a_metric_without_a_relative_change_counts_for_no_value(values):
    rows = [row('ew', 0, 1.0), row(A, 0, 0.9), row(B, 0, 0.8)]
    for label, value in (('ew', 0.0), (A, 50.0), (B, 0.0)):
        rows.append(dataclasses.replace(row(label, 0, value, metric='semseg/mIoU'), higher_is_better=True))
    assert choice.choose(values, [0], rows)['scores'] == {A: [pytest.approx(10)], B: [pytest.approx(20)]}
    with pytest.raises(ValueError, match='no metric of ew is above 0 in all seeds'):
        choice.choose(values, [0], [row(label, 0, 0.0) for label in ('ew', A, B)])


def test_nothing_is_chosen_before_all_seeds_are_measured(values):
    with pytest.raises(ValueError, match='ew has no validation numbers of seed 1'):
        choice.choose(values, [0, 1], [row('ew', 0, 1.0), *(row(A, seed, 1.0) for seed in (0, 1)), row(B, 0, 1.0)])


def test_there_must_be_something_to_choose():
    with pytest.raises(ValueError, match='no entry of --methods has several values'):
        choice.sweeps_of(load_contestants(str(TINY), ['ew', 'rep-mtl:lambda_tsr=0.1'], Options()))


def test_data_with_a_validation_split_is_measured_there(values, tmp_path):
    assert not choice.needs_parts(str(TINY), Options())
    run, *_ = make_runs(tmp_path, values, [0], Options(), ['val'])
    assert [name for name, _ in run.steps] == ['train', 'val'] and run.results == (('val', 'val/test_metrics.json'),)
    assert run.steps[1][1][-3:] == ('--split', 'val', '--no-constant')


def test_data_without_one_needs_parts(tmp_path):
    same = variant(tmp_path, "val_dataloader = dict(dataset=dict(split='test'))")
    with pytest.raises(ValueError, match='has no validation data besides the test data') as error:
        choice.needs_parts(str(same), Options())
    assert str(same) in str(error.value)


def test_nyuv2_is_divided_and_its_test_images_are_in_no_loader(tmp_path):
    assert choice.needs_parts(NYUV2, Options())
    (value, _) = load_contestants(NYUV2, [ENTRY], Options())
    part = choice.on_parts(value, Options())
    (run,) = make_runs(tmp_path, [part], [0], Options(), ['val'])
    train, test = run.steps[0][1], run.steps[1][1]
    options = dict(text.split('=', 1) for text in train[train.index('--cfg-options') + 1 :])
    cfg = load_config(NYUV2, method='rep-mtl', cfg_options=options)
    splits = [cfg[f'{split}_dataloader'].dataset.split for split in ('train', 'val', 'test')]
    assert splits == ['train-part', 'val-part', 'val-part']
    assert cfg.optim_wrapper.regularizers[0].lambda_tsr == '0.1'
    assert run.results == (('val', 'test_metrics.json'),) and '--split' not in test
    assert run.folder.parent.name == f'{A}@val' and part.config_hash != value.config_hash


def test_a_value_is_chosen_by_the_mean_that_its_test_is(tmp_path):
    options = Options(selection='last10')
    (value, _) = load_contestants(NYUV2, [ENTRY], options)
    (run,) = make_runs(tmp_path, [choice.on_parts(value, options)], [0], options, ['val'])
    assert [name for name, _ in run.steps] == ['train'] and run.results == (('val', 'metrics.json'),)


def test_pure_python_configs_are_compared_too(tmp_path):
    config = str(inherited(tmp_path, ''))
    assert [one.entry.label for one in load_contestants(config, ['ew', 'cagrad:c=0.4'], Options())] == [
        'ew',
        'cagrad:c=0.4',
    ]
