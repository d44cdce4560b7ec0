"""The arguments that several commands have."""

import os

import pytest

from mmrepmtl.cli import browse, check, demo, export, infer, saliency, test, train

CONFIG = ('CONFIG', '--data-root', 'data', '--cfg-options', 'a.b=1', 'c=[1,2]')
MODEL = ('RUN', '--checkpoint', 'x.pth', '--size', '24', '32', '--trust-checkpoint')


@pytest.mark.parametrize(
    ('command', 'more'),
    [(browse, ()), (check, ()), (train, ()), (test, ('x.pth',)), (saliency, ('x.pth', 'val:0'))],
    ids=['browse', 'check', 'train', 'test', 'saliency'],
)
def test_commands_that_take_a_config_change_it_alike(command, more):
    args = command.parse_args([CONFIG[0], *more, *CONFIG[1:]])
    assert (args.config, args.data_root, args.cfg_options) == ('CONFIG', 'data', {'a.b': 1, 'c': [1, 2]})


@pytest.mark.parametrize(
    ('command', 'more'),
    [(demo, ()), (export, ()), (infer, ('x.png',))],
    ids=['demo', 'export', 'infer'],
)
def test_commands_that_take_a_run_find_its_model_alike(command, more):
    args = command.parse_args([MODEL[0], *more, *MODEL[1:]])
    assert (args.config_or_workdir, args.checkpoint, args.size) == ('RUN', 'x.pth', [24, 32])
    assert args.trust_checkpoint
    assert not command.parse_args([MODEL[0], *more]).trust_checkpoint


@pytest.mark.parametrize('command', [train, test], ids=['train', 'test'])
def test_the_rank_of_an_old_launcher_reaches_mmengine_and_that_of_torchrun_stays(command, monkeypatch):
    arguments = ['CONFIG', *(['x.pth'] if command is test else []), '--launcher', 'pytorch', '--local_rank', '3']
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    assert command.parse_args(arguments).launcher == 'pytorch' and os.environ['LOCAL_RANK'] == '3'
    monkeypatch.setenv('LOCAL_RANK', '1')
    command.parse_args(arguments)
    assert os.environ['LOCAL_RANK'] == '1'
