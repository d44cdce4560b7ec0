"""Every command on configs of classes, functions and partials instead of names."""

import json
import re

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmrepmtl.apis import MultiTaskInferencer, evaluate, load_config, train
from mmrepmtl.apis import config as api
from mmrepmtl.apis.config_file import available_configs, read_config
from mmrepmtl.apis.train import single_task_config
from mmrepmtl.demo.page import Demo, _heading
from mmrepmtl.evaluation import load_results
from mmrepmtl.inspection.browse import browse_dataset
from mmrepmtl.inspection.dataset_check import check_dataset
from mmrepmtl.utils.checkpoint import load_checkpoint
from tests.cli.harness import CLASSES, METRICS, SHORT, TINY, inherited, run
from tests.tools import own_parts


def test_a_config_of_classes_trains_and_its_own_hook_acts(trained):
    assert 'CountingHook' in own_parts.seen
    metrics, meta = load_results(trained / 'metrics.json')
    assert (
        set(metrics) >= METRICS and 'EqualWeighting of log L_t' in meta['objective'] and 'RepMTL' in meta['objective']
    )


def test_the_config_of_the_work_directory_is_read_back(trained):
    text = (trained / 'classes.py').read_text()
    assert "type='mmrepmtl.models.MultiTaskModel'" in text and 'own_parts.Brighten' in text
    there, here = read_config(trained / 'classes.py'), load_config(CLASSES)
    assert there.model == here.model and there.val_evaluator == here.val_evaluator
    assert api.test_data(there) == api.test_data(here) and api.metric_settings(there) == api.metric_settings(here)


def test_names_and_classes_are_the_same_test_set():
    assert api.test_data(load_config(CLASSES)) == api.test_data(load_config(TINY))
    assert api.metric_settings(load_config(CLASSES)) == api.metric_settings(load_config(TINY))


def test_both_ways_train_the_same_weights(tmp_path):
    """The augmentation of one's own aside, classes.py says what tiny.py says."""
    options = {'train_cfg.max_epochs': 1, 'train_dataloader.dataset.num_samples': 8}
    run('train', TINY, '--work-dir', tmp_path / 'names', options=options)
    pipeline = "train_dataloader['dataset']['pipeline']"
    config = inherited(tmp_path, f'{pipeline} = {pipeline}[1:]')
    run('train', config, '--work-dir', tmp_path / 'classes', options=options)
    one, two = (load_checkpoint(tmp_path / name / 'epoch_1.pth')['state_dict'] for name in ('names', 'classes'))
    assert [key for key in one if not torch.equal(one[key], two[key])] == []


@pytest.mark.parametrize(
    'arguments',
    [
        ('--method', 'pcgrad'),
        ('--method', 'sdmgrad', '--seed', 3),
        ('--method', 'uw', '--regularizer', 'rep-mtl', '--precision', 'bf16', '--selection', 'best-val'),
        ('--method', 'graddrop', '--encoder-checkpointing'),
    ],
    ids=lambda arguments: arguments[1],
)
def test_train_takes_its_options_on_classes(arguments, tmp_path):
    run('train', CLASSES, *arguments, '--work-dir', tmp_path, options=SHORT | {'train_dataloader.batch_size': 2})
    metrics, meta = load_results(tmp_path / 'metrics.json')
    assert set(metrics) >= METRICS and meta['iteration'] == 2
    assert ('RepMTL' in meta['objective']) == ('--regularizer' in arguments)
    if '--selection' in arguments:
        assert 'best-val' in meta['selection'] and (tmp_path / 'best.pth').is_file()


def test_a_regularizer_is_not_added_twice_to_classes():
    with pytest.raises(ValueError, match='--regularizer: the method has RepMTL already'):
        load_config(CLASSES, regularizer='rep-mtl')
    assert load_config(CLASSES, method='sdmgrad').optim_wrapper.accumulative_counts == 3


def test_resume_on_classes(trained, tmp_path):
    for name in ('epoch_1.pth', 'metrics.json'):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_1.pth'))
    run('train', CLASSES, '--work-dir', tmp_path, '--resume', options=SHORT | {'train_cfg.max_epochs': 2})
    assert load_results(tmp_path / 'metrics.json')[1]['epoch'] == 2 and (tmp_path / 'epoch_2.pth').is_file()


def test_single_tasks_then_test_with_delta_p_on_classes(trained, tmp_path, capsys):
    run('train', CLASSES, '--method', 'stl', '--work-dir', tmp_path / 'stl', options=SHORT)
    stl = tmp_path / 'stl' / 'stl.json'
    assert set(load_results(stl)[0]) >= METRICS
    checkpoint = trained / 'epoch_1.pth'
    # The baseline of classes counts for names, and the other way round: the test set is one.
    for config in (CLASSES, trained / 'classes.py', TINY):
        work_dir = tmp_path / f'test_{config.parent.name}_{config.stem}'
        run('test', config, checkpoint, '--stl', stl, '--work-dir', work_dir, '--show-dir', work_dir, options={})
        assert 'delta_p_task (ARI)' in capsys.readouterr().out
        metrics, meta = load_results(work_dir / 'test_metrics.json')
        assert set(metrics) >= METRICS and set(meta['constant']) == set(metrics)
        assert (work_dir / 'predictions.png').is_file()


def test_check_browse_and_saliency_on_classes(trained, picture, tmp_path, capsys):
    assert run('check', CLASSES, '--workers', 0) == 0 and 'no defects' in capsys.readouterr().out
    assert run('check', trained / 'classes.py', '--workers', 0, '--split', 'val') == 0
    for split in ('train', 'test'):
        run('browse', CLASSES, '--split', split, '--num', 2, '--out', tmp_path / f'{split}.png')
        assert (tmp_path / f'{split}.png').is_file()
    printed = []
    for config in (CLASSES, trained / 'classes.py'):
        capsys.readouterr()
        images = ('val:0,1', picture)
        run('saliency', config, trained / 'epoch_1.pth', *images, '--out', tmp_path / 's.png', '--device', 'cpu')
        line = capsys.readouterr().out.splitlines()[1]
        # mmengine sorts the tasks in the config of a work directory.
        printed.append(sorted(re.findall(r'[\w.]+', line)))
    assert printed[0] == printed[1] and 'RepMTL (csa 0.9, tsr 0.9)' in line


def test_check_finds_the_defects_of_classes(tmp_path, capsys):
    text = "model['heads']['semseg'].update(num_classes=5)\nval_evaluator[1].update(task='normal')"
    assert run('check', inherited(tmp_path, text), '--workers', 0) == 1
    printed = capsys.readouterr().out
    assert "head 'semseg': num_classes=5, but 'semseg' of the training data has 11 classes" in printed
    assert "DepthMetric of 'normal': it evaluates targets of kind 'depth'" in printed


def test_infer_and_export_on_classes(trained, picture, tmp_path):
    run('infer', trained, picture, '--out-dir', tmp_path / 'a', '--device', 'cpu')
    run(
        'infer',
        CLASSES,
        picture,
        '--checkpoint',
        trained / 'epoch_1.pth',
        '--out-dir',
        tmp_path / 'b',
        '--device',
        'cpu',
    )
    a, b = (cv2.imread(str(tmp_path / folder / 'semseg' / 'mine.png'), cv2.IMREAD_UNCHANGED) for folder in 'ab')
    assert a.shape[:2] == (30, 40) and np.array_equal(a, b)
    pytest.importorskip('onnxscript')
    assert run('export', trained, '--out', tmp_path / 'model.onnx') == 0


def test_the_demo_knows_the_embedded_data_set_in_each_way(trained):
    inferencer = MultiTaskInferencer(trained, device='cpu')
    assert 'has seen rendered rooms only' in _heading(Demo(inferencer))
    inferencer.cfg.train_dataloader = None
    assert 'has seen rendered rooms only' not in _heading(Demo(inferencer))


def test_configs_of_objects_that_a_program_makes(trained, picture, tmp_path):
    """Classes in a config that never was a file: the functions take it as the commands take files."""

    def make() -> Config:
        cfg = load_config(CLASSES, work_dir=str(tmp_path), cfg_options=SHORT)
        for part in (cfg.model, *cfg.model.heads.values(), cfg.train_dataloader.dataset, *cfg.val_evaluator):
            names = dict(m='mmrepmtl.models', d='mmrepmtl.datasets', e='mmrepmtl.evaluation')
            module = next(name for name in names.values() if part.type.startswith(name))
            part.type = getattr(__import__(module, fromlist=['x']), part.type.rpartition('.')[2])
            assert isinstance(part.type, type)
        return cfg

    assert check_dataset(make()) == []
    assert browse_dataset(make(), tmp_path / 'sheet.png', num=2) == [0, 3]
    assert set(train(make())) >= METRICS
    again = read_config(tmp_path / 'classes.py')
    assert again.model.type == 'mmrepmtl.models.multi_task_model.MultiTaskModel'
    cfg = make()
    cfg.experiment_name = 'objects_test'
    assert set(evaluate(cfg, trained / 'epoch_1.pth')['metrics']) >= METRICS
    (result,) = MultiTaskInferencer(tmp_path, device='cpu')(picture)
    assert result.predictions['depth'].shape == (1, 30, 40)


OWN = """
_base_ = '{base}'
from torch import nn
from tests.tools.own_parts import DoubleWeighting, OwnBackend, OwnDepthMetric
from tests.tools.own_parts import SmallAdam, SmallDecoder, build_model, pack

model = dict(type=build_model, heads=dict(depth=dict(decoder=dict(_delete_=True, type=SmallDecoder, num_convs=1))))
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type=SmallAdam), weighting=dict(type=DoubleWeighting, factor=3.0), regularizers=[]
)
visualizer = dict(vis_backends=[dict(type=OwnBackend)])
test_dataloader = dict(dataset=dict(pipeline=[dict(type=pack)]))
val_evaluator = [dict(type=OwnDepthMetric, task='depth')]
"""


def test_functions_partials_and_own_classes_over_a_text_config(picture, tmp_path):
    config = tmp_path / 'own.py'
    config.write_text(OWN.format(base=TINY))
    run('train', config, '--work-dir', tmp_path / 'run', options=SHORT)
    metrics, meta = load_results(tmp_path / 'run' / 'metrics.json')
    assert set(metrics) == {'depth/abs_err', 'depth/rel_err', 'depth/rmse'}
    assert 'DoubleWeighting' in meta['objective'] and (tmp_path / 'run' / 'own.py').is_file()
    signature = load_checkpoint(tmp_path / 'run' / 'epoch_1.pth')['optimizer']['multi_task']['signature']
    assert json.loads(signature)['weighting'] == dict(type='DoubleWeighting', factor=3.0)
    run('train', config, '--work-dir', tmp_path / 'run', '--resume', options=SHORT | {'train_cfg.max_epochs': 2})
    run('infer', tmp_path / 'run', picture, '--out-dir', tmp_path / 'out', '--device', 'cpu')
    assert (tmp_path / 'out' / 'depth' / 'mine.png').is_file()
    assert run('check', config, '--workers', 0) == 0


def test_a_class_that_cannot_be_imported_is_named_with_its_key(tmp_path):
    (tmp_path / 'broken.py').write_text('from no_such_package import Hook\n\ncustom_hooks = [dict(type=Hook)]\n')
    with pytest.raises(ValueError, match=r'broken\.py: custom_hooks\.0\.type: .*no_such_package'):
        load_config(tmp_path / 'broken.py')


def test_a_pure_python_config_imports_its_custom_modules(tmp_path, monkeypatch):
    (tmp_path / 'imported_by_config.py').write_text('loaded = True\n')
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'new.py').write_text(
        "from torch.optim import Adam\n\ncustom_imports = dict(imports=['imported_by_config'])\n"
        'optim_wrapper = dict(optimizer=dict(type=Adam))\n'
    )
    cfg = load_config(tmp_path / 'new.py')
    import imported_by_config

    assert imported_by_config.loaded and cfg.optim_wrapper.optimizer.type == 'torch.optim.Adam'
    assert 'Adam' not in cfg and cfg.default_scope == 'mmrepmtl'


def test_folders_and_targets_reach_data_sets_inside_wrappers_and_stay_with_domains():
    for name, inner in (('gta5_cityscapes', 'gta5'), ('nyuv2', None)):
        config = next(config for config in available_configs() if config.startswith(f'{name}/'))
        cfg = load_config(config, data_root='/data')
        dataset = cfg.train_dataloader.dataset
        assert dataset.data_root == '/data'
        if inner:
            assert dataset.datasets[inner].data_root == inner
            alone = single_task_config(cfg, inner).train_dataloader.dataset
            assert alone.targets == [inner] and 'targets' not in alone.datasets[inner]
    wrapped = {'train_dataloader.dataset': dict(type='RepeatDataset', times=2, dataset=dict(dataset))}
    cfg = load_config(config, data_root='/other', cfg_options=wrapped)
    api._set_data_root(cfg, '/other')
    assert cfg.train_dataloader.dataset.dataset.data_root == '/other'
    task = next(iter(cfg.model.heads))
    assert single_task_config(cfg, task).train_dataloader.dataset.dataset.targets == [task]
