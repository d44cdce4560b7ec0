"""Types in a config, in each way to say them: a plain, scoped or dotted name, a class, a partial, a lazy object."""

from functools import partial

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.config.lazy import LazyObject
from torch import nn

from mmrepmtl.engine import MetricsFileHook
from mmrepmtl.models import ConvDecoder
from mmrepmtl.registry import HOOKS, MODELS
from mmrepmtl.utils.config_types import drop_imported, find_type, is_type, name_types, plain_data, type_name
from tests.tools import own_parts

DECODERS = {
    'name': 'ConvDecoder',
    'scoped': 'mmrepmtl.ConvDecoder',
    'dotted': 'mmrepmtl.models.ConvDecoder',
    'dotted module': 'mmrepmtl.models.decoders.conv.ConvDecoder',
    'class': ConvDecoder,
    'lazy': LazyObject('mmrepmtl.models', 'ConvDecoder'),
    'lazy attribute': LazyObject('mmrepmtl.models').ConvDecoder,
}


@pytest.mark.parametrize('kind', DECODERS.values(), ids=DECODERS)
def test_each_way_to_say_a_class_is_the_class(kind):
    assert find_type(kind, MODELS) is ConvDecoder
    assert type_name(kind) == 'ConvDecoder'
    assert is_type(kind, MODELS, ConvDecoder) and is_type(kind, MODELS, nn.Module)
    assert not is_type(kind, MODELS, nn.Linear)


def test_partials_functions_and_nothing():
    small = partial(partial(ConvDecoder, hidden_channels=4), num_convs=1)
    assert is_type(small, MODELS, ConvDecoder) and type_name(small) == 'ConvDecoder'
    assert find_type('tests.tools.own_parts.SmallDecoder', MODELS) is own_parts.SmallDecoder
    assert is_type('tests.tools.own_parts.SmallDecoder', MODELS, ConvDecoder)
    assert find_type(own_parts.build_model, MODELS) is own_parts.build_model
    assert not is_type(own_parts.build_model, MODELS, nn.Module)
    for nothing in (None, '', 'NoSuchHook'):
        assert find_type(nothing, HOOKS) is None and not is_type(nothing, HOOKS, MetricsFileHook)
    assert type_name(None) == ''


@pytest.mark.parametrize('kind', DECODERS.values(), ids=DECODERS)
def test_settings_are_the_same_data_in_each_way(kind):
    parts = dict(pipeline=[dict(type=kind, size=(2, 3))], _scope_='mmrepmtl', number=1.5)
    assert plain_data(parts) == dict(pipeline=[dict(type='ConvDecoder', size=[2, 3])], number=1.5)
    assert plain_data(ConfigDict(parts)) == plain_data(parts)


def test_a_task_named_type_stays_what_it_is():
    labels = ConfigDict(type=dict(kind='depth'), other=1)
    assert plain_data(dict(labels=labels)) == dict(labels=dict(type=dict(kind='depth'), other=1))
    name_types(Config(dict(labels=labels)))
    assert labels.type.kind == 'depth'


def test_types_become_names_that_lead_back(tmp_path):
    cfg = Config(
        dict(
            model=dict(
                type=ConvDecoder, layers=[dict(type=nn.Linear)], norm=nn.BatchNorm2d, inner=(dict(type='Kept'),)
            ),
            optimizer=dict(type=partial(torch.optim.Adam, lr=0.5, eps=0.1), lr=0.25),
            build=dict(type=own_parts.build_model),
        )
    )
    name_types(cfg)
    assert cfg.model.type == 'mmrepmtl.models.decoders.conv.ConvDecoder'
    assert cfg.model.layers[0].type == 'torch.nn.modules.linear.Linear' and cfg.model.inner[0].type == 'Kept'
    assert cfg.build.type == 'tests.tools.own_parts.build_model'
    # A partial's arguments are defaults: those of the config count.
    assert (cfg.optimizer.type, cfg.optimizer.lr, cfg.optimizer.eps) == ('torch.optim.adam.Adam', 0.25, 0.1)
    assert cfg.model.norm is nn.BatchNorm2d
    cfg.dump(tmp_path / 'dumped.py')
    again = Config.fromfile(tmp_path / 'dumped.py')
    assert again.model.type == cfg.model.type and again.optimizer == cfg.optimizer


def test_what_has_no_name_is_refused_with_its_key():
    for kind in (lambda: None, partial(ConvDecoder, 3), partial(lambda: None)):
        with pytest.raises(ValueError, match=r'^model\.heads\.a\.type: .*no name that a config file can hold'):
            name_types(Config(dict(model=dict(heads=dict(a=dict(type=kind))))))
    with pytest.raises(ValueError, match=r'^hooks\.0\.type: .*no_such_module'):
        cfg = Config(dict(hooks=[ConfigDict()]))
        dict.__setitem__(cfg.hooks[0], 'type', LazyObject('no_such_module', 'Hook'))
        name_types(cfg)

    class Local(nn.Linear):
        pass

    cfg = Config(dict(model=dict(type=Local)))
    name_types(cfg)
    assert cfg.model.type is Local  # works in this process


def test_what_a_config_imported_is_no_setting():
    cfg = Config(dict(Adam=torch.optim.Adam, torch=torch, build=own_parts.build_model, model=dict(type='X'), epochs=3))
    drop_imported(cfg)
    assert set(cfg._cfg_dict) == {'model', 'epochs'}
