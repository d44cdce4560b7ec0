"""The plan of a comparison: what is done, what is refused, and that nothing is lost. Nothing is trained here."""

import dataclasses
import json
import shutil

import pytest

from mmrepmtl.comparison.comparison import Comparison, check_seeds
from mmrepmtl.comparison.execution import share_out
from mmrepmtl.comparison.locks import FolderLock
from mmrepmtl.comparison.plan import Options, write_plan
from mmrepmtl.comparison.results_file import read_results, write_results
from tests.comparison.harness import ROW, comparison, finish, states, variant


def test_seeds_are_a_count_or_a_list():
    assert check_seeds([3]) == [0, 1, 2] and check_seeds([0, 5, 7]) == [0, 5, 7]
    for seeds in ([0], [1, 1], [-1, 2]):
        with pytest.raises(ValueError, match='--seeds: give how many'):
            check_seeds(seeds)


def test_the_plan_names_the_commands_and_starts_nothing(tmp_path):
    made = comparison(tmp_path / 'c', 'stl', 'pcgrad+rep-mtl', 'cagrad:c=0.4', seeds=[2])
    text = '\n'.join(made.plan_lines())
    assert text.startswith('6 runs: 6 missing') and text.count(' train ') == 6 and text.count(' test ') == 4
    assert '--seed 1 --method pcgrad --regularizer rep-mtl --cfg-options train_cfg.max_epochs=1 ' in text
    assert 'train_cfg.max_epochs=1 optim_wrapper.aggregator.c=0.4' in text
    assert '"$(cat ' in text and not (tmp_path / 'c').exists()
    (stl,) = [run for run in made.runs if run.name == 'stl, seed 0']
    assert [name for name, _ in stl.steps] == ['train'] and stl.results == (('test', 'stl.json'),)
    # One task has no cosine to measure.
    assert 'task_gradients' not in ' '.join(stl.steps[0][1]) and text.count('task_gradients.type') == 4


def test_the_selection_decides_what_is_tested(tmp_path):
    validated = ('train_cfg.max_epochs=12', 'val_dataloader.dataset.split=test')
    (last10,) = comparison(tmp_path, options=Options(validated, 'last10')).runs
    assert [name for name, _ in last10.steps] == ['train'] and last10.results == (('test', 'metrics.json'),)
    # Without that they would be numbers of the validation data.
    with pytest.raises(ValueError, match='ew: --selection last10: .* test_dataloader has other data'):
        comparison(tmp_path, options=Options(validated[:1], 'last10'))
    stl, best = comparison(tmp_path, 'stl', 'ew', options=Options((), 'best-val', 'depth/abs_err')).runs
    assert '--selection best-val' in ' '.join(stl.steps[0][1]) and '--selection-metric' not in stl.steps[0][1]
    assert best.steps[1][1][5].endswith('best.pth')
    assert '--selection best-val --selection-metric depth/abs_err' in ' '.join(best.steps[0][1])


def test_a_finished_run_counts_by_its_folder_its_row_or_a_row_elsewhere(tmp_path):
    folder = tmp_path / 'c'
    made = comparison(folder, 'ew', 'uw')
    finish(made)
    assert states(comparison(folder, 'ew', 'uw')) == ['done', 'done']
    assert made.run(device='cpu') == 0
    assert [(row.label, row.seed, row.value) for row in read_results(folder / 'results.csv')] == [
        ('ew', 0, 1.0),
        ('uw', 0, 1.0),
    ]
    shutil.rmtree(folder / 'runs')
    assert states(comparison(folder, 'ew', 'uw', 'cagrad')) == ['done', 'done', 'missing']
    elsewhere = comparison(tmp_path / 'd', 'uw', 'cagrad', known=[folder / 'results.csv'])
    assert states(elsewhere) == ['done', 'missing'] and {row.label for row in elsewhere.rows} == {'uw'}
    assert states(comparison(tmp_path / 'd', 'uw', seeds=[2], known=[folder / 'results.csv'])) == ['done', 'missing']


def test_the_value_that_is_chosen_is_added_and_stays_chosen(tmp_path, capsys):
    values = {seed: f'rep-mtl:lambda_tsr=0.{seed}' for seed in (1, 9)}
    methods = ('ew', 'rep-mtl:lambda_tsr=0.1|0.9')
    made = comparison(tmp_path, *methods, seeds=[2], select_on='val')
    assert [run.results[0][0] for run in made.runs] == ['val'] * 6 and len(made.runs[0].results) == 2
    assert 'then the value of rep-mtl:lambda_tsr=0.1|0.9 that is best' in made.plan_lines()[-1]
    # On the test set the other one is better.
    finish(made, val={values[1]: 0.9, values[9]: 0.8}, test={values[1]: 0.1, values[9]: 5.0})
    assert made.run(device='cpu') == 0
    assert f'{values[9]} is chosen' in capsys.readouterr().out
    rows = read_results(tmp_path / 'results.csv')
    tested = {(row.label, row.seed, row.value) for row in rows if row.split == 'test'}
    assert tested == {('ew', 0, 1.0), ('ew', 1, 1.0), (values[9], 0, 5.0), (values[9], 1, 5.0)}
    assert {row.selection for row in rows if row.label == values[9] and row.split == 'test'} == {
        'the best of 2 values on the validation data'
    }
    # The other value is not missing in the table, and no method that a difference is corrected for.
    assert 'No run is missing.' in (tmp_path / 'table.md').read_text()
    again = comparison(tmp_path, *methods, seeds=[3], select_on='val')
    planned = [(run.name, run.state) for run in again.runs if run.contestant.entry.label != 'ew']
    assert planned == [(f'{values[9]}, seed {seed}', 'done' if seed < 2 else 'missing') for seed in range(3)]


def test_another_config_is_refused_by_name_with_what_changed(tmp_path):
    folder, longer = tmp_path / 'c', Options(cfg_options=('train_cfg.max_epochs=2',))
    made = comparison(folder)
    finish(made)
    with pytest.raises(ValueError, match=r'runs/ew: train_cfg.max_epochs was 1 and is 2') as error:
        comparison(folder, options=longer)
    assert '\n' not in str(error.value)
    assert made.run(device='cpu') == 0
    shutil.rmtree(folder / 'runs')
    with pytest.raises(ValueError, match=r'results.csv has ew, seed 0 with the config \w+, .* is \w+ now'):
        comparison(folder, options=longer)
    with pytest.raises(ValueError, match=r'results.csv has ew, seed 0 with the config'):
        comparison(tmp_path / 'd', options=longer, known=[folder / 'results.csv'])


@pytest.mark.parametrize('damage', ['{"config_hash": "x', '[]', None])
def test_a_damaged_record_is_no_missing_one(tmp_path, damage):
    made = comparison(tmp_path, 'ew', 'uw')
    finish(made)
    record = made.runs[1].folder / 'run.json'
    record.unlink()
    if damage is None:
        record.mkdir()
    else:
        record.write_text(damage)
    with pytest.raises(
        ValueError, match=r'run.json (cannot be read|is no record).*with which config uw, seed 0'
    ) as error:
        comparison(tmp_path, 'ew', 'uw')
    assert str(made.runs[1].folder) in str(error.value)
    shutil.rmtree(made.runs[1].folder)
    assert states(comparison(tmp_path, 'ew', 'uw')) == ['done', 'missing']


def test_a_metric_that_a_run_no_longer_has_goes_with_its_old_numbers(tmp_path):
    made = comparison(tmp_path, 'ew', 'uw')
    finish(made)
    assert made.run(device='cpu') == 0
    (tmp_path / 'results.csv').unlink()
    again = comparison(tmp_path, 'ew', 'uw')
    again.rows = [*made.rows, dataclasses.replace(made.rows[0], metric='depth/old')]
    assert again.run(device='cpu') == 0
    assert [(row.label, row.metric) for row in again.rows] == [('ew', 'depth/abs_err'), ('uw', 'depth/abs_err')]


def test_a_config_of_its_own_is_measured_on_the_same_test_set(tmp_path):
    longer = variant(tmp_path, "train_cfg = dict(max_epochs=7)\noptim_wrapper = dict(loss_transform='log')")
    made = comparison(tmp_path / 'c', 'ew', str(longer), options=Options())
    assert [run.contestant.entry.label for run in made.runs] == ['ew', 'variant']
    assert '--method' not in made.runs[1].steps[0][1] and str(longer) in made.runs[1].steps[0][1]
    other = variant(tmp_path, 'test_dataloader = dict(dataset=dict(num_samples=3))')
    with pytest.raises(ValueError, match=r'--methods: .*variant.py was measured on another test set'):
        comparison(tmp_path / 'c', 'ew', str(other), options=Options())


def test_what_a_config_lacks_is_said_before_anything_starts(tmp_path):
    without = variant(tmp_path, 'test_dataloader = test_cfg = test_evaluator = None')
    with pytest.raises(ValueError, match='ew: compare: the config has no test_dataloader') as error:
        Comparison(str(without), ['ew'], [1], tmp_path / 'c')
    assert '\n' not in str(error.value)


def test_two_at_once_in_one_folder(tmp_path):
    made, lock = comparison(tmp_path), FolderLock(tmp_path)
    before = list(tmp_path.iterdir())
    with pytest.raises(ValueError, match='another compare is at work in'):
        made.run(device='cpu')
    assert set(tmp_path.iterdir()) == set(before)
    lock.release()


def test_rows_that_another_call_has_written_meanwhile_stay(tmp_path):
    made = comparison(tmp_path, 'ew')
    finish(made)
    (other,) = comparison(tmp_path / 'other', 'uw').contestants
    row = dataclasses.replace(ROW, label='uw', config_hash=other.config_hash, sweep='{}')
    write_results(tmp_path / 'results.csv', [row])
    assert made.run(device='cpu') == 0
    assert {row.label for row in read_results(tmp_path / 'results.csv')} == {'ew', 'uw'}


def test_the_plan_file_keeps_earlier_methods_and_takes_the_order_of_whoever_names_all(tmp_path):
    def written(*methods):
        made = comparison(tmp_path, *methods)
        write_plan(tmp_path, made.config, made.contestants, made.seeds, made.options, {})
        return json.loads((tmp_path / 'comparison.json').read_text())

    assert written('stl', 'ew')['methods'] == ['stl', 'ew']
    assert written('uw')['methods'] == ['stl', 'ew', 'uw']
    content = written('uw', 'ew', 'stl')
    assert content['methods'] == ['uw', 'ew', 'stl'] and set(content['entries']) == {'stl', 'ew', 'uw'}


def test_the_machine_is_shared_out(monkeypatch):
    monkeypatch.setattr('mmrepmtl.comparison.execution.cores', lambda: 8)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,6')
    assert share_out(3, 'cpu', None, {}).threads == 2 and share_out(20, 'cpu', None, {}).threads == 1
    assert share_out(2, 'cuda:4,6', None, {}).gpus == ('4', '6') and share_out(1, 'cpu', None, {}).gpus == ('',)
    monkeypatch.setattr('torch.cuda.device_count', lambda: 2)
    assert share_out(2, 'auto', None, {}).gpus == ('4', '6')
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    assert share_out(1, 'cpu', None, {}).threads == 1
    with pytest.raises(ValueError, match="--device: there is no GPU '5'; there are 4, 6, and cpu"):
        share_out(2, '5', None, {})
    with pytest.raises(ValueError, match='--jobs'):
        share_out(0, 'cpu', None, {})
