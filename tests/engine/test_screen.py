"""The facts and notes of a quiet run for loops and models that are not those of our recipes."""

import re
from types import SimpleNamespace

import pytest
import torch
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch import nn

from mmrepmtl.engine.hooks import ProgressHook


def fake_runner(loop: type, model: nn.Module, **settings) -> SimpleNamespace:
    """The parts that the hook reads of a runner at the start of a training of 40 iterations."""
    loader = SimpleNamespace(dataset=settings.pop('dataset', [0] * 24), batch_size=settings.pop('batch_size', 6))
    facts = dict(cfg=dict(model={}), distributed=False, iter=0, epoch=0, max_iters=40, max_epochs=10, log_dir='LOGS')
    return SimpleNamespace(
        model=model, train_loop=object.__new__(loop), train_dataloader=loader, optim_wrapper=None, **facts | settings
    )


def lines_of(runner, capsys) -> dict[str, str]:
    ProgressHook().before_train(runner)
    return dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())


def test_a_foreign_model_in_a_loop_of_iterations(capsys):
    model = nn.Module()
    model.backbone, model.other = nn.Linear(1000, 1000), nn.Linear(1, 1)
    lines = lines_of(fake_runner(IterBasedTrainLoop, model, batch_size=None, dataset=iter([])), capsys)
    assert lines['model'] == 'Linear; 1.0 M parameters' and lines['length'] == '40 iterations'
    assert lines['data'] == 'list_iterator, a stream of training images' and lines['method'] == 'NoneType'


def test_a_run_that_goes_on_says_what_is_done(capsys):
    lines = lines_of(fake_runner(EpochBasedTrainLoop, nn.Linear(3, 3), iter=8), capsys)
    assert lines['length'] == '10 epochs, 40 iterations, 8 of them done' and lines['model'].startswith('Linear; ')
    assert lines['log'] == 'LOGS' and lines['device'].startswith('cpu, ')


@pytest.mark.parametrize(
    ('outputs', 'note'),
    [
        ({'loss': torch.tensor(2.5), 'raw/a': torch.tensor(0.25), 'raw/b': 3}, ', epoch 1, losses a 0.25 b 3'),
        ({'loss': torch.tensor(2.5)}, ', epoch 1, loss 2.5'),
        (None, ', epoch 1'),
    ],
)
def test_the_losses_are_those_before_the_transform(outputs, note, capsys):
    runner, hook = fake_runner(EpochBasedTrainLoop, nn.Linear(3, 3)), ProgressHook(lines=40)
    hook.before_train_epoch(runner)
    hook.after_train_iter(runner, 0, None, outputs)
    assert re.sub(r'[\d:]+ \w+ left', 'TIME', capsys.readouterr().out) == f'training 1 of 40 (2 %), TIME{note}\n'


@pytest.mark.parametrize('loop', ['val', 'test'])
def test_a_stream_of_unknown_length_has_a_count_and_no_time_left(loop, capsys):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(range(2))

    runner, hook = fake_runner(EpochBasedTrainLoop, nn.Linear(3, 3)), ProgressHook()
    setattr(runner, f'{loop}_dataloader', torch.utils.data.DataLoader(Stream()))
    getattr(hook, f'before_{loop}_epoch')(runner)
    for index in range(2):
        getattr(hook, f'after_{loop}_iter')(runner, index)
    getattr(hook, f'after_{loop}_epoch')(runner, {})
    assert 'left' not in capsys.readouterr().out
