"""Configs by name: files of the user, configs of the package, mmengine's prefix and read_base."""

import os
from pathlib import Path

import pytest
from mmengine.config import Config

import mmrepmtl
from mmrepmtl.apis import available_configs, available_methods, load_config
from mmrepmtl.apis import config_file as files
from mmrepmtl.apis.config_file import configs_folder, find_config

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / 'configs/synth_rooms/quickstart.py'


def test_the_links_in_the_package_lead_to_the_configs():
    assert configs_folder().resolve() == ROOT / 'configs'
    assert (ROOT / 'mmrepmtl/configs').resolve() == ROOT / 'configs'
    assert not os.path.isabs(os.readlink(ROOT / 'mmrepmtl/configs'))
    assert not os.path.isabs(os.readlink(ROOT / 'mmrepmtl/.mim/configs'))


@pytest.mark.parametrize('ending', ['', '.py'])
@pytest.mark.parametrize('start', ['', 'configs/', 'mmrepmtl::'])
def test_a_config_is_named_by_its_path_in_the_package(start, ending, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = f'{start}synth_rooms/quickstart{ending}'
    assert find_config(name).resolve() == QUICKSTART
    cfg = load_config(name, method='uw')
    assert cfg.optim_wrapper.weighting.type == 'UncertaintyWeighting' and cfg.work_dir == 'work_dirs/quickstart_uw'
    assert mmrepmtl.get_config(name).model == load_config(QUICKSTART).model


def test_a_file_of_the_user_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'synth_rooms').mkdir()
    (tmp_path / 'synth_rooms/quickstart.py').write_text('mine = True\n')
    assert mmrepmtl.get_config('synth_rooms/quickstart.py').mine
    assert 'mine' not in mmrepmtl.get_config('synth_rooms/quickstart')


def test_a_name_that_there_is_not_gets_the_nearest():
    with pytest.raises(FileNotFoundError, match='no config synth_rooms/quikstart.*mmrepmtl has synth_rooms/quickstart'):
        load_config('synth_rooms/quikstart')
    with pytest.raises(FileNotFoundError, match='there is no config ../setup.py'):
        find_config('../setup.py')
    with pytest.raises(FileNotFoundError, match='there is no config nowhere.py, neither as a file nor in mmrepmtl$'):
        find_config('nowhere.py')


def test_every_config_has_a_name_and_bases_have_none():
    names = available_configs()
    assert len(names) == len({*names}) == len([p for p in (ROOT / 'configs').glob('[!_]*/*.py')])
    assert not [name for name in names if '_base_' in name]
    assert all(find_config(name).is_file() for name in names)


def test_a_package_without_configs_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(files, 'PACKAGE', tmp_path / 'mmrepmtl')
    with pytest.raises(FileNotFoundError, match='this installation of mmrepmtl has no configs'):
        configs_folder()


def test_a_config_elsewhere_inherits_by_the_prefix(tmp_path):
    (tmp_path / 'own.py').write_text(
        "_base_ = ['mmrepmtl::synth_rooms/quickstart.py']\nrandomness = dict(seed=3)\n"
        'optim_wrapper = dict(weighting=_base_.optim_wrapper.weighting)\n'
    )
    cfg, ours = load_config(tmp_path / 'own.py'), load_config(QUICKSTART)
    assert cfg.randomness.seed == 3 and cfg.model.heads.keys() == ours.model.heads.keys()
    assert available_methods(tmp_path / 'own.py') == available_methods()
    (tmp_path / 'parts.py').write_text(
        "_base_ = ['mmrepmtl::_base_/models/resnet18-d16_conv.py', 'mmrepmtl::_base_/methods/ew.py']\n"
    )
    assert Config.fromfile(tmp_path / 'parts.py').optim_wrapper.weighting.type == 'EqualWeighting'


def test_the_marks_of_the_prefix_change_neither_method_nor_test_set(tmp_path):
    import torch

    from mmrepmtl.apis.config import metric_settings, test_data
    from mmrepmtl.registry import OPTIM_WRAPPERS

    (tmp_path / 'own.py').write_text(
        "_base_ = 'mmrepmtl::synth_rooms/quickstart.py'\n"
        'optim_wrapper = dict(weighting=_base_.optim_wrapper.weighting)\n'
    )
    signatures = []
    for path in (tmp_path / 'own.py', QUICKSTART):
        cfg = load_config(path)
        settings = dict(cfg.optim_wrapper, optimizer=torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1))
        signatures.append((OPTIM_WRAPPERS.build(settings).signature, test_data(cfg), metric_settings(cfg)))
    assert signatures[0] == signatures[1]


def test_read_base_reads_ours_by_import(tmp_path):
    (tmp_path / 'new.py').write_text(
        'from mmengine.config import read_base\n\nwith read_base():\n'
        '    from mmrepmtl.configs._base_.datasets.synth_rooms_96x128 import *\n'
        '    from mmrepmtl.configs._base_.default_runtime import *\n\n'
        'from mmrepmtl.models import MultiTaskModel\n\nmodel = dict(type=MultiTaskModel)\n'
        'train_dataloader.update(batch_size=3)\n'
    )
    cfg = load_config(tmp_path / 'new.py')
    assert (cfg.train_dataloader.batch_size, cfg.model.type) == (3, 'mmrepmtl.models.MultiTaskModel')
    assert cfg.train_dataloader.dataset.type == 'SynthRoomsDataset' and 'MultiTaskModel' not in cfg
