"""Every command on configs without a validation, a test or a training, and with evaluators written in each way."""

from pathlib import Path

import pytest

from mmrepmtl.evaluation import load_results
from tests.cli.harness import METRICS, SHORT, run, variant


def without(*splits: str) -> str:
    return ''.join(f'{split}_dataloader = {split}_cfg = {split}_evaluator = None\n' for split in splits)


FORMS = {
    'val None': without('val'),
    'test None': without('test'),
    'both None': without('val', 'test'),
    'val absent': 'del val_dataloader, val_cfg, val_evaluator',
    'test absent': 'del test_dataloader, test_cfg, test_evaluator',
    'one metric': 'val_evaluator = val_evaluator[1]\ntest_evaluator = test_evaluator[1]',
    'Evaluator': "val_evaluator = dict(type='Evaluator', metrics=val_evaluator)\n"
    "test_evaluator = dict(type='Evaluator', metrics=test_evaluator)",
}


@pytest.fixture(params=FORMS)
def form(request, trained, tmp_path) -> tuple[str, Path]:
    return request.param, variant(trained / 'classes.py', tmp_path, FORMS[request.param])


def lacks(name: str, *splits: str) -> bool:
    return name in ('both None', *(f'{split} {how}' for split in splits for how in ('None', 'absent')))


def test_training_and_selection_without_a_part(form, tmp_path):
    name, config = form
    run('train', config, '--work-dir', tmp_path / 'run', options=SHORT)
    assert (tmp_path / 'run' / 'epoch_1.pth').is_file()
    assert (tmp_path / 'run' / 'metrics.json').is_file() != lacks(name, 'val')
    best = ('train', config, '--selection', 'best-val', '--work-dir', tmp_path / 'best')
    if lacks(name, 'val'):
        with pytest.raises(SystemExit, match='--selection best-val: the config has no val_dataloader and no val_cfg'):
            run(*best, options=SHORT)
    else:
        run(*best, options=SHORT)
        assert (tmp_path / 'best' / 'best.pth').is_file()


def test_single_tasks_without_a_part(form, tmp_path):
    name, config = form
    stl = ('train', config, '--method', 'stl', '--work-dir', tmp_path / 'stl')
    if lacks(name, 'test'):
        message = '--method stl, which measures each task on the test set: the config has no test_dataloader'
    elif name == 'one metric':
        message = r"--method stl: no metric of val_evaluator has task='\w+'; add one"
    else:
        run(*stl, options=SHORT)
        assert set(load_results(tmp_path / 'stl' / 'stl.json')[0]) >= METRICS
        return
    with pytest.raises(SystemExit, match=message):
        run(*stl, options=SHORT)
    assert not (tmp_path / 'stl').exists()


def test_test_without_a_part(form, trained, tmp_path):
    name, config = form
    command = ('test', config, trained / 'epoch_1.pth', '--work-dir', tmp_path / 'test')
    if lacks(name, 'test'):
        with pytest.raises(SystemExit, match='test: the config has no test_dataloader and no test_cfg and no test_ev'):
            run(*command, options={})
        return
    run(*command, options={})
    metrics, meta = load_results(tmp_path / 'test' / 'test_metrics.json')
    assert set(meta['constant']) == set(metrics)
    assert set(metrics) >= ({'depth/abs_err'} if name == 'one metric' else METRICS)


def test_looking_at_data_and_pictures_without_a_part(form, trained, picture, tmp_path, capsys):
    name, config = form
    checkpoint = trained / 'epoch_1.pth'
    assert run('check', config, '--workers', 0) == 0
    printed = capsys.readouterr().out
    for split in ('val', 'test'):
        assert (f'{split}: the config has no {split}_dataloader, so there is nothing to check' in printed) == lacks(
            name, split
        )
    # The data root of what is there is set, and of nothing else.
    run('browse', config, '--num', 1, '--out', tmp_path / 'sheet.png', '--data-root', tmp_path)
    for split in ('val', 'test'):
        if lacks(name, split):
            with pytest.raises(SystemExit, match=f'browse_dataset: the config has no {split}_dataloader'):
                run('browse', config, '--split', split, '--out', tmp_path / 'sheet.png')
    commands = [
        ('infer', config, picture, '--checkpoint', checkpoint, '--out-dir', tmp_path / 'out', '--device', 'cpu'),
        ('saliency', config, checkpoint, 'train:0', picture, '--out', tmp_path / 's.png', '--device', 'cpu'),
    ]
    for command in commands:
        if name == 'both None':
            try:
                said = '' if run(*command) == 0 else capsys.readouterr().err
            except SystemExit as exit_:
                said = str(exit_)
            assert 'neither a test_dataloader nor a val_dataloader' in said
        else:
            run(*command)


def test_export_without_a_test(trained, tmp_path, capsys):
    pytest.importorskip('onnxscript')
    arguments = ('--checkpoint', trained / 'epoch_1.pth', '--out', tmp_path / 'model.onnx')
    assert run('export', variant(trained / 'classes.py', tmp_path, without('test')), *arguments) == 0
    config = variant(trained / 'classes.py', tmp_path, without('val', 'test'))
    assert run('export', config, *arguments) == 1
    assert 'export: prediction on pictures: the config has neither a test_dataloader nor' in capsys.readouterr().err


def test_a_part_that_is_half_there_is_named_before_training(trained, tmp_path):
    config = variant(trained / 'classes.py', tmp_path, 'val_evaluator = None')
    with pytest.raises(SystemExit, match='val_evaluator go together, or all are None.*the config has no val_evaluator'):
        run('train', config, '--work-dir', tmp_path / 'run', options=SHORT)
    assert not (tmp_path / 'run').exists()
    # A test needs neither a whole validation nor a training.
    none = 'train_dataloader = train_cfg = optim_wrapper = param_scheduler = val_evaluator = None'
    config = variant(trained / 'classes.py', tmp_path, none)
    test = ('test', config, trained / 'epoch_1.pth', '--work-dir', tmp_path / 'test')
    run(*test, '--no-constant', options={})
    assert (tmp_path / 'test' / 'test_metrics.json').is_file()
    with pytest.raises(SystemExit, match=r'best constant .*\(--no-constant\): the config has no train_dataloader'):
        run(*test, options={})
    with pytest.raises(
        SystemExit, match='training: the config has no train_dataloader and no train_cfg and no optim_w'
    ):
        run('train', config, '--work-dir', tmp_path / 'run', options={})
    with pytest.raises(SystemExit, match='--method changes optim_wrapper, but the config has none'):
        run('train', config, '--method', 'ew', options={})
