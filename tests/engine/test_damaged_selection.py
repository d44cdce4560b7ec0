"""Files of the selection that are damaged end no run: it goes on with what is sure and says what is lost."""

import json

import pytest
import torch

from mmrepmtl.engine.hooks.selection import HISTORY_KEY, SelectionHook
from mmrepmtl.utils.checkpoint import load_checkpoint
from tests.tools.harness import make_runner, metrics_at

DAMAGE = [
    b'',
    b'{"rule": "x", "history": [{"ep',
    b'\xff\xfe\0',
    b'[]',
    b'null',
    b'3',
    b'{"history": 3}',
    b'{"history": [1]}',
]
NO_CHECKPOINT = [b'', b'PK\x03\x04', b'not a checkpoint', b'\x80\x02}q\0.']


class Validating:
    """Stands for the validation loop: gives the hook the metrics of the runner's epoch."""

    def __init__(self, runner, hook) -> None:
        self.runner, self.hook = runner, hook

    def run(self) -> None:
        self.hook.after_val_epoch(self.runner, metrics_at(self.runner.epoch))


def validate(hook, runner, *epochs: int) -> None:
    for epoch in epochs:
        runner.epoch, runner.iter = epoch, 10 * epoch
        torch.nn.init.constant_(runner.model.weight, epoch)
        hook.after_val_epoch(runner, metrics_at(epoch))


@pytest.fixture(params=[None, 'a/abs_err'])
def metric(request):
    return request.param


@pytest.fixture
def started(tmp_path, metric):
    """Three of four validations; the checkpoint of the third epoch, as it was saved before its validation."""
    hook, runner = SelectionHook('best-val', metric), make_runner(tmp_path)
    hook.before_train(runner)
    validate(hook, runner, 1, 2)
    checkpoint = {}
    hook.before_save_checkpoint(runner, checkpoint)
    validate(hook, runner, 3)
    return tmp_path, checkpoint


def resumed(folder, metric, checkpoint, epoch=3):
    hook, runner = SelectionHook('best-val', metric), make_runner(folder)
    hook.after_load_checkpoint(runner, checkpoint)
    runner.epoch, runner.iter, runner.train_loop = epoch, 10 * epoch, object()
    hook.before_train(runner)
    return hook, runner


def best_of_all(metric):
    return 3 if metric is None else 4


@pytest.mark.parametrize('content', DAMAGE)
def test_a_damaged_history_is_taken_from_the_checkpoint(started, metric, content, caplog):
    folder, checkpoint = started
    (folder / 'selection.json').write_bytes(content)
    hook, runner = resumed(folder, metric, checkpoint)
    assert 'selection.json is damaged' in caplog.text and 'taken from the checkpoint' in caplog.text
    validate(hook, runner, 4)
    hook.after_train(runner)
    assert hook.metrics == metrics_at(best_of_all(metric))
    assert load_checkpoint(folder / 'best.pth')['meta']['epoch'] == best_of_all(metric)
    assert len(json.loads((folder / 'selection.json').read_text())['history']) >= 3


@pytest.mark.parametrize('kept', ['[]', 'no JSON', None, 7, '{"a": 1}'])
def test_without_any_history_the_best_one_is_what_is_sure(started, metric, kept, caplog):
    folder, _ = started
    (folder / 'selection.json').write_bytes(b'{')
    hook, runner = resumed(folder, metric, {} if kept is None else {HISTORY_KEY: kept})
    assert 'the validations so far are lost, apart from the best one in best.pth, of epoch 3' in caplog.text
    validate(hook, runner, 4)
    hook.after_train(runner)
    assert hook.metrics == metrics_at(best_of_all(metric))


@pytest.mark.parametrize('content', NO_CHECKPOINT)
def test_lost_weights_of_the_best_are_said_and_the_rest_is_selected_from(started, metric, content, caplog):
    folder, checkpoint = started
    (folder / 'best.pth').write_bytes(content)
    hook, runner = resumed(folder, metric, checkpoint)
    assert 'best.pth is damaged, and its weights are lost' in caplog.text
    assert 'the weights of the best validation so far are not in best.pth' in caplog.text
    # The validation of the weights at hand is done again: it is not in the history any more.
    assert [entry['epoch'] for entry in hook._history] == [1, 2]
    validate(hook, runner, 3, 4)
    hook.after_train(runner)
    assert hook.metrics == metrics_at(best_of_all(metric))
    assert load_checkpoint(folder / 'best.pth')['state_dict']['weight'].item() == best_of_all(metric)


@pytest.mark.parametrize('meta', [{}, dict(epoch=3), dict(epoch='3', iter=30, metrics={}, score=1.0), dict(metrics=3)])
def test_a_best_checkpoint_without_its_meta_is_one_that_is_lost(started, metric, meta, caplog):
    folder, checkpoint = started
    torch.save(dict(meta=meta, state_dict={}), folder / 'best.pth')
    resumed(folder, metric, checkpoint)
    assert 'best.pth is damaged' in caplog.text


def test_a_validation_that_is_done_again_is_in_the_history_once(started, metric):
    folder, checkpoint = started
    hook, runner = resumed(folder, metric, checkpoint)
    validate(hook, runner, 3, 4)
    history = json.loads((folder / 'selection.json').read_text())['history']
    assert [entry['epoch'] for entry in history] == [1, 2, 3, 4]


def test_both_damaged_is_a_new_start_of_the_selection(started, metric, caplog):
    folder, _ = started
    (folder / 'best.pth').write_bytes(b'')
    (folder / 'selection.json').write_bytes(b'')
    hook, runner = resumed(folder, metric, {})
    validate(hook, runner, 3, 4)
    hook.after_train(runner)
    assert hook.metrics == metrics_at(best_of_all(metric))
