"""mmengine's log buffers keep what the log reads, and no more."""

from types import SimpleNamespace

import pytest
from mmengine.logging import MessageHub
from mmengine.runner import LogProcessor

from mmrepmtl.engine.hooks import LogHistoryHook


def run(iterations: int, keep: int = 5, epoch: int = 8, validation: int = 3, **processor) -> MessageHub:
    """The hub after so many iterations, with a validation after each epoch."""
    hub = MessageHub(f'log_history_{id(processor)}')
    runner = SimpleNamespace(
        message_hub=hub,
        log_processor=LogProcessor(**processor),
        train_dataloader=range(epoch),
        val_dataloader=range(validation),
    )
    hook = LogHistoryHook(keep)
    hook.before_run(runner)
    hook.before_train(runner)
    for i in range(iterations):
        hub.update_scalar('train/loss', float(i))
        hook.after_train_iter(runner, i % epoch)
        if (i + 1) % epoch == 0:
            hook.before_val(runner)
            for j in range(validation):
                hub.update_scalar('val/time', float(i + j))
                hook.after_val_iter(runner, j)
    return hub


def kept(hub: MessageHub, name: str) -> list[float]:
    return hub.get_scalar(name).data[0].tolist()


def test_the_newest_values_are_kept():
    hub = run(100, window_size=4)
    assert kept(hub, 'train/loss') == [95.0, 96.0, 97.0, 98.0, 99.0]
    assert len(kept(hub, 'val/time')) == 5
    assert hub.get_scalar('train/loss').mean(4) == 97.5


def test_a_longer_window_of_the_log_is_kept():
    assert len(kept(run(100, window_size=20), 'train/loss')) == 20
    custom = [dict(data_src='loss', method_name='mean', window_size=30, log_name='loss_30')]
    assert len(kept(run(100, window_size=4, custom_cfg=custom), 'train/loss')) == 30


def test_an_epoch_is_kept_where_the_log_averages_over_it():
    custom = [dict(data_src='loss', method_name='mean', window_size='epoch', log_name='loss_epoch')]
    assert len(kept(run(100, epoch=40, window_size=4, custom_cfg=custom), 'train/loss')) == 40
    assert len(kept(run(100, validation=15, window_size=4), 'val/time')) == 15


@pytest.mark.parametrize('window', [dict(window_size='global'), dict()], ids=['global', 'no size'])
def test_all_is_kept_where_the_log_reads_all(window):
    custom = [dict(data_src='loss', method_name='max', log_name='largest', **window)]
    assert len(kept(run(100, window_size=4, custom_cfg=custom), 'train/loss')) == 100


def test_the_newest_value_alone_needs_no_history():
    custom = [dict(data_src='loss', method_name='current', log_name='now')]
    assert len(kept(run(100, window_size=4, custom_cfg=custom), 'train/loss')) == 5


def test_buffers_of_an_older_checkpoint_are_cut():
    hub = run(3, window_size=4)
    hub.log_scalars['train/loss'] = type(hub.get_scalar('train/loss'))(range(50), [1] * 50)
    hook = LogHistoryHook(5)
    runner = SimpleNamespace(message_hub=hub, log_processor=LogProcessor(window_size=4))
    hook.before_run(runner)
    hook.after_train_iter(runner, 0)
    hub.update_scalar('train/loss', 50.0)
    assert kept(hub, 'train/loss') == [46.0, 47.0, 48.0, 49.0, 50.0]


def test_a_loader_without_a_length_keeps_all():
    hook = LogHistoryHook(5)
    runner = SimpleNamespace(log_processor=LogProcessor(window_size=4), val_dataloader=iter(()))
    hook.before_run(runner)
    hook.before_val(runner)
    assert hook._length == float('inf')


@pytest.mark.parametrize('keep', [0, -1, 1.5, True, None, '5'])
def test_keep_is_a_number_of_values(keep):
    with pytest.raises(ValueError, match='keep must be an integer of at least 1'):
        LogHistoryHook(keep)
