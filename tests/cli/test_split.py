"""``test --split val``: for choices that the test set must not see."""

import json

import pytest

from tests.cli.harness import run, variant


def test_the_validation_data_are_measured_in_the_place_of_the_test_data(trained, tmp_path):
    (checkpoint,) = trained.glob('epoch_*.pth')
    run(
        'test',
        trained / 'classes.py',
        checkpoint,
        '--split',
        'val',
        '--no-constant',
        '--work-dir',
        tmp_path,
        options={},
    )
    found = json.loads((tmp_path / 'test_metrics.json').read_text())
    validated = json.loads((trained / 'metrics.json').read_text())
    assert '"split": "val"' in found['meta']['test_data']
    assert found['metrics'] == pytest.approx(validated['metrics'])


def test_a_config_without_validation_says_so(trained, tmp_path):
    config = variant(trained / 'classes.py', tmp_path, 'val_dataloader = val_cfg = val_evaluator = None')
    (checkpoint,) = trained.glob('epoch_*.pth')
    with pytest.raises(SystemExit, match='--split val: the config has no val_dataloader'):
        run('test', config, checkpoint, '--split', 'val', '--work-dir', tmp_path, options={})
