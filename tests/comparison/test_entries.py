"""The entries of --methods, and the places of a sweep's keys."""

import json

import pytest

from mmrepmtl.apis.config import load_config
from mmrepmtl.comparison.entries import parse_entries, parse_options, resolve_options, sweep_text
from tests.cli.harness import TINY

CONFIG = str(TINY)


def entries(*texts):
    return parse_entries(texts, CONFIG)


def places(text):
    """{place in the config: value} of the first entry."""
    (entry, *_) = entries(text)
    cfg = load_config(CONFIG, method=entry.method, regularizer=entry.regularizer)
    return dict(resolve_options(entry, cfg).options)


def test_names_two_names_and_config_files(tmp_path):
    stl, both, file = entries('stl', 'pcgrad+rep-mtl', CONFIG)
    assert (stl.label, stl.method, stl.regularizer) == ('stl', 'stl', None)
    assert (both.label, both.method, both.regularizer) == ('pcgrad+rep-mtl', 'pcgrad', 'rep-mtl')
    assert (file.label, file.method, file.config) == ('tiny', None, CONFIG)
    assert [one.method_name for one in (stl, both, file)] == ['stl', 'pcgrad+rep-mtl', 'tiny']


@pytest.mark.parametrize('values', ['', ':optim_wrapper.optimizer.lr=1'])
@pytest.mark.parametrize('name', ['stl', 'ew', 'rep-mtl', 'pcgrad+rep-mtl'])
def test_a_config_file_does_not_pass_for_a_method(tmp_path, name, values):
    file = tmp_path / f'{name}.py'
    file.write_text(f'_base_ = {CONFIG!r}\n')
    with pytest.raises(ValueError, match='which is the name of a method; rename the config file') as error:
        entries(f'{file}{values}')
    assert str(file) in str(error.value)


def test_a_config_file_does_not_pass_for_a_method_of_this_package_beside_overlays_of_its_own(tmp_path):
    overlays = tmp_path / '_base_' / 'methods'
    overlays.mkdir(parents=True)
    (overlays / 'mine.py').write_text("_base_ = 'mmrepmtl::_base_/methods/ew.py'\n")
    for name in ('base', 'stl', 'mine'):
        (tmp_path / f'{name}.py').write_text(f'_base_ = {CONFIG!r}\n')
    for name in ('stl', 'mine'):
        with pytest.raises(ValueError, match='which is the name of a method'):
            parse_entries([str(tmp_path / f'{name}.py')], str(tmp_path / 'base.py'))


def test_bars_make_one_entry_for_each_combination_of_values():
    found = entries('rep-mtl:lambda_tsr=0.1|0.3,lambda_csa=0.2|0.4', 'ew:optim_wrapper.optimizer.betas=(0.9,0.99)')
    assert [one.label for one in found] == [
        'rep-mtl:lambda_tsr=0.1,lambda_csa=0.2',
        'rep-mtl:lambda_tsr=0.1,lambda_csa=0.4',
        'rep-mtl:lambda_tsr=0.3,lambda_csa=0.2',
        'rep-mtl:lambda_tsr=0.3,lambda_csa=0.4',
        'ew:optim_wrapper.optimizer.betas=_0.9,0.99_',
    ]
    assert {one.group for one in found[:4]} == {'rep-mtl:lambda_tsr=0.1|0.3,lambda_csa=0.2|0.4'}
    assert found[4].group == '' and found[4].method_name == 'ew'
    assert json.loads(sweep_text(found[1])) == dict(lambda_tsr=0.1, lambda_csa=0.4)
    assert json.loads(sweep_text(found[4])) == {'optim_wrapper.optimizer.betas': [0.9, 0.99]}


def test_a_key_finds_the_component_that_takes_it():
    regularizer = 'optim_wrapper.regularizers.0'
    assert places('rep-mtl:lambda_tsr=0.1,lambda_csa=0') == {
        f'{regularizer}.lambda_tsr': '0.1',
        f'{regularizer}.lambda_csa': '0',
    }
    assert places('cagrad:c=0.4') == {'optim_wrapper.aggregator.c': '0.4'}
    assert places('pcgrad+rep-mtl:lambda_tsr=0.1') == {f'{regularizer}.lambda_tsr': '0.1'}
    assert places('ew:lr=1e-4') == {'optim_wrapper.optimizer.lr': '1e-4'}
    assert places('ew:loss_transform=log') == {'optim_wrapper.loss_transform': 'log'}
    assert places('ew:train_cfg.max_epochs=3') == {'train_cfg.max_epochs': '3'}
    assert places('rep-mtl:optim_wrapper.regularizers.0.lambda_tsr=1') == {f'{regularizer}.lambda_tsr': '1'}


@pytest.mark.parametrize(
    ('texts', 'said'),
    [
        (['pc-grad'], "'pc-grad': there is no method 'pc-grad'; near it: pcgrad"),
        (['ew+rep_mtl'], "there is no method 'rep_mtl'; near it: rep-mtl"),
        (['ew', 'ew'], "'ew' is there twice"),
        (['ew:'], 'has no key=value after the colon'),
        (['ew:lr'], "'lr' is not key=value"),
        (['ew:lr=1|'], "'lr=1|' is not key=value"),
        (['ew:lr=1,lr=2'], 'lr is there twice; several values are lr=0.1|0.3'),
        (['ew:lr=1|1'], 'has a value twice'),
        (['stl:lr=1'], 'the single-task baseline takes no values'),
        (['nowhere/config.py'], 'there is no config nowhere/config.py'),
    ],
)
def test_what_is_wrong_is_said_with_the_entry(texts, said):
    with pytest.raises(ValueError, match='--methods') as error:
        entries(*texts)
    assert said in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('rep-mtl:lamda_tsr=1', "no component of rep-mtl takes 'lamda_tsr'; they take"),
        ('ew:c=0.4', "no component of ew takes 'c'"),
        ('ew:optimwrapper.optimizer.lr=1', "the config has no 'optimwrapper'"),
        ('ew:optim_wrapper.regularizers.0.lambda_tsr=1', "the config has no '0'"),
    ],
)
def test_a_key_that_nothing_takes_is_refused(text, said):
    with pytest.raises(ValueError) as error:
        places(text)
    assert said in str(error.value)


def test_options_are_read_as_every_command_reads_them():
    assert parse_options(['a.b=1', 'c=[x,2]', 'd=x,y']) == {'a.b': 1, 'c': ['x', 2], 'd': ['x', 'y']}
    with pytest.raises(ValueError, match="--cfg-options: 'a' is not key=value"):
        parse_options(['a'])
