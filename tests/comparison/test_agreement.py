"""One table is of one config and one set of options, whatever the folder holds already."""

import dataclasses
import json
import shutil

import pytest

from mmrepmtl.comparison.plan import Options
from mmrepmtl.comparison.results_file import CONSTANT, read_results, write_results
from tests.comparison.harness import ROW, SHORT, comparison, finish, states, variant

LONGER = Options(cfg_options=('train_cfg.max_epochs=2',))
SWEEP = ('ew', 'rep-mtl:lambda_tsr=0.1|0.9')


def begun(folder, *methods, **more):
    """A comparison whose runs are done, the test of a chosen value among them."""
    made = comparison(folder, *methods, **more)
    finish(made, test={'rep-mtl:lambda_tsr=0.1': 1.0})
    assert made.run(device='cpu') == 0
    return made


@pytest.mark.parametrize('left', ['runs', 'rows', 'both'])
def test_a_method_that_is_added_has_the_options_of_those_that_are_there(tmp_path, left):
    begun(tmp_path, 'stl', 'ew')
    if left == 'rows':
        shutil.rmtree(tmp_path / 'runs')
    if left == 'runs':
        (tmp_path / 'results.csv').unlink()
    said = r'stl: train_cfg.max_epochs was 1 and is 2; ew: train_cfg.max_epochs was 1 and is 2. One table is of one'
    with pytest.raises(ValueError, match=said) as error:
        comparison(tmp_path, 'rep-mtl', options=LONGER)
    assert '\n' not in str(error.value)
    # Options that change no number may differ.
    others = dataclasses.replace(SHORT, gradients=7, data_root=str(tmp_path))
    assert states(comparison(tmp_path, 'uw', options=others)) == ['missing']


def test_a_seed_that_is_added_has_the_options_of_those_that_are_there(tmp_path):
    begun(tmp_path, 'ew', seeds=[0, 1])
    shutil.rmtree(tmp_path / 'runs')
    with pytest.raises(ValueError, match=r'results.csv has ew, seed \d with the config \w+, but the config is \w+ now'):
        comparison(tmp_path, 'ew', seeds=[2, 3], options=LONGER)
    assert states(comparison(tmp_path, 'ew', seeds=[1, 2])) == ['done', 'missing']


def test_what_was_only_planned_binds_nothing(tmp_path):
    begun(tmp_path, 'ew')
    shutil.rmtree(tmp_path / 'runs')
    (tmp_path / 'results.csv').unlink()
    assert states(comparison(tmp_path, 'uw', options=LONGER)) == ['missing']


def test_a_config_file_that_has_changed_is_noticed_though_this_call_does_not_name_it(tmp_path):
    own = variant(tmp_path, 'train_cfg = dict(max_epochs=7)')
    begun(tmp_path / 'c', 'ew', str(own), options=Options())
    variant(tmp_path, 'train_cfg = dict(max_epochs=8)')
    with pytest.raises(ValueError, match=r'variant: train_cfg.max_epochs was 7 and is 8'):
        comparison(tmp_path / 'c', 'uw', options=Options())
    own.unlink()
    with pytest.raises(ValueError, match=r'comparison.json has variant, but with which config cannot be said now'):
        comparison(tmp_path / 'c', 'uw', options=Options())


def test_rows_without_a_plan_are_of_this_config_or_refused(tmp_path):
    begun(tmp_path, 'ew', 'rep-mtl:lambda_tsr=0.3')
    (tmp_path / 'comparison.json').unlink()
    shutil.rmtree(tmp_path / 'runs')
    assert states(comparison(tmp_path, 'uw')) == ['missing']
    with pytest.raises(ValueError, match='results.csv has ew, seed 0 with the config'):
        comparison(tmp_path, 'uw', options=LONGER)
    rows = read_results(tmp_path / 'results.csv')
    write_results(tmp_path / 'results.csv', [dataclasses.replace(rows[0], label='mine')])
    with pytest.raises(ValueError, match="results.csv has mine, but .*there is no method 'mine'.*Name its entry"):
        comparison(tmp_path, 'uw')


def test_a_known_file_is_looked_at_row_by_row_and_lends_constants_with_its_runs(tmp_path):
    made = begun(tmp_path / 'there', 'ew')
    known = tmp_path / 'there' / 'results.csv'
    constant = dataclasses.replace(ROW, label=CONSTANT, method=CONSTANT, seed=None, config_hash='', sweep='{}')
    write_results(known, [*made.rows, constant])
    taken = comparison(tmp_path / 'here', 'ew', 'uw', known=[known])
    assert [row.label for row in taken.rows] == [CONSTANT, 'ew'] and states(taken) == ['done', 'missing']
    # No run of the file takes part: nothing says that its constants are of this data.
    assert comparison(tmp_path / 'here', 'uw', known=[known]).rows == []
    assert comparison(tmp_path / 'here', 'ew', seeds=[4, 5], known=[known]).rows == []
    # Rows of a split that this call does not plan would stand in the report too.
    write_results(known, [*made.rows, dataclasses.replace(made.rows[0], split='val', config_hash='other')])
    with pytest.raises(ValueError, match='has ew, seed 0 with the config other'):
        comparison(tmp_path / 'here', 'ew', known=[known])


def test_a_choice_is_of_the_config_that_it_was_made_with(tmp_path):
    begun(tmp_path, *SWEEP, select_on='val')
    file = tmp_path / 'comparison.json'
    content = json.loads(file.read_text())
    made = comparison(tmp_path, *SWEEP, select_on='val')
    hashes = {one.entry.label: one.config_hash for one in made.contestants if one.entry.group}
    assert content['choices'][SWEEP[1]]['hashes'] == hashes
    shutil.rmtree(tmp_path / 'runs')
    (tmp_path / 'results.csv').unlink()
    with pytest.raises(ValueError, match=r'comparison.json: the value of rep-mtl:lambda_tsr=0.1\|0.9 was chosen with'):
        comparison(tmp_path, *SWEEP, select_on='val', options=LONGER)
    assert comparison(tmp_path, *SWEEP, select_on='val').choices == content['choices']


def test_validation_rows_of_a_choice_stay_though_only_equal_weighting_was_beside_it(tmp_path):
    begun(tmp_path, SWEEP[1], select_on='val')
    assert {row.label for row in read_results(tmp_path / 'results.csv') if row.split == 'val'} > {'ew'}
    assert states(comparison(tmp_path, 'uw')) == ['missing']
    with pytest.raises(ValueError, match='max_epochs was 1 and is 2'):
        comparison(tmp_path, 'uw', options=LONGER)
