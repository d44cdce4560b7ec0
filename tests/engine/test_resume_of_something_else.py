"""A run resumed with other settings says so with both values; what it cannot go on from is refused."""

import json
import logging

import pytest
import torch

from mmrepmtl.apis import train
from mmrepmtl.engine.resumable import check_complete
from mmrepmtl.engine.run_settings import SETTINGS
from tests.engine.quick import quick_config

SHORT = dict(train_cfg__max_epochs=2)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A checkpoint after two epochs."""
    folder = tmp_path_factory.mktemp('saved')
    train(quick_config(folder, **SHORT))
    return folder / 'epoch_2.pth'


@pytest.fixture
def resume(saved, tmp_path, capsys):
    """Resumes it, or another content in its place, with changes; returns the log."""

    def call(content=None, by_epoch=True, **changes) -> str:
        path = saved
        if content is not None:
            path = tmp_path / 'changed.pth'
            torch.save(content, path)
        cfg = quick_config(
            tmp_path / 'run', by_epoch, resume=True, load_from=str(path), **({} if not by_epoch else SHORT)
        )
        cfg.merge_from_dict({key.replace('__', '.'): value for key, value in changes.items()})
        train(cfg)
        return capsys.readouterr().out

    return call


def test_the_same_settings_say_nothing(resume):
    assert ' now and was ' not in resume(train_dataloader__num_workers=0, train_dataloader__pin_memory=True)


@pytest.mark.parametrize(
    'change, said',
    [
        (dict(train_dataloader__batch_size=4), 'batch_size is 4 now and was 2; the run goes on with the new value'),
        (dict(train_dataloader__batch_size=4), 'batches_per_epoch is 2 now and was 4'),
        (dict(optim_wrapper__optimizer__lr=0.5), 'lr is 0.5 now and was 0.01; the schedule of the checkpoint goes on'),
        (dict(optim_wrapper__optimizer__weight_decay=0.5), 'weight_decay is 0.5 now and was 0.0'),
        (dict(optim_wrapper__optimizer__momentum=0.5), 'optim_wrapper.optimizer.momentum is 0.5 now and was 0.9'),
        (dict(optim_wrapper__accumulative_counts=2), 'accumulative_counts is 2 now and was not set'),
        (dict(optim_wrapper__clip_grad=dict(max_norm=1.0)), 'clip_grad.max_norm is 1.0 now and was not set'),
        (dict(randomness__seed=8), "seed is 8 now and was 3; the checkpoint's goes on"),
        (dict(train_cfg__max_epochs=3), 'length is 3 now and was 2; the schedule of the checkpoint goes on'),
        (
            dict(param_scheduler=[dict(type='MultiStepLR', milestones=[1], by_epoch=True)]),
            'milestones is [1] now and was [2]',
        ),
        (dict(train_dataloader__dataset__length=12), 'samples is 12 now and was 8'),
        (dict(train_dataloader__dataset__data_root='/b'), 'dataset.data_root is /b now and was not set'),
        (dict(train_dataloader__dataset__ann_file='b.txt'), 'dataset.ann_file is b.txt now and was not set'),
        (dict(train_dataloader__sampler__shuffle=False), 'sampler.shuffle is False now and was True'),
        (dict(train_dataloader__num_workers=1), 'num_workers is 1 now and was 0'),
        (dict(val_dataloader__batch_size=1), 'val_dataloader.batch_size is 1 now and was 2'),
        (
            dict(custom_hooks=[dict(type='ResumeHook'), dict(type='EMAHook')]),
            'custom_hooks.EMAHook.type is EMAHook now',
        ),
    ],
)
def test_a_changed_setting_is_said_with_both_values(resume, change, said):
    assert said in resume(**change)


def test_many_changes_are_listed_and_the_rest_named(resume):
    log = resume(
        val_evaluator=dict(type='QuickMetric', prefix='x', **{}),
        **{
            f'optim_wrapper__optimizer__{key}': value
            for key, value in dict(
                lr=1.0, momentum=0.1, dampening=0.0, weight_decay=0.1, nesterov=False, maximize=False
            ).items()
        },
        **{
            f'train_dataloader__dataset__{key}': value
            for key, value in dict(length=6, data_root='x', ann_file='y').items()
        },
        randomness__seed=1,
        train_cfg__val_interval=2,
        train_cfg__val_begin=2,
    )
    assert 'more settings differ: ' in log


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(model__heads=('a',)), "the model lacks the weights of the head 'b'"),
        (dict(model__heads=('a', 'b', 'c')), "it lacks the weights of the head 'c'"),
        (
            dict(model__heads=('a', 'z')),
            "it lacks the weights of the head 'z'; the model lacks the weights of the head 'b'",
        ),
        (dict(model__width=5), r'encoder.weight has shape \(3, 4\) there and \(5, 4\) in the model'),
        (dict(optim_wrapper__optimizer=dict(_delete_=True, type='Adam', lr=0.01)), 'optimizer is Adam now and was SGD'),
        (
            dict(optim_wrapper__paramwise_cfg=dict(custom_keys=dict(heads=dict(lr_mult=2.0)))),
            'the optimizer had 6 parameters in 1 group, and has',
        ),
        (
            dict(param_scheduler=[dict(type='LinearLR', end=1), dict(type='MultiStepLR', milestones=[2])]),
            'param_scheduler had 1 parts, and has 2 now',
        ),
        (dict(by_epoch=False), 'loop is iterations now and was epochs'),
    ],
)
def test_what_cannot_go_on_is_refused_before_training(resume, change, message):
    if 'optim_wrapper__optimizer' in change:
        change = dict(optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=0.01), _delete_=True))
    with pytest.raises(ValueError, match=f'cannot be resumed.*{message}.*load_from'):
        resume(**change)


def _state(change):
    """Changes the state of the optimizer in a checkpoint."""

    def call(checkpoint: dict) -> dict:
        change(checkpoint['optimizer']['state'])
        return checkpoint

    return call


def _weight(change):
    """Changes one weight in a checkpoint."""

    def call(checkpoint: dict) -> dict:
        checkpoint['state_dict']['encoder.weight'] = change(checkpoint['state_dict']['encoder.weight'])
        return checkpoint

    return call


@pytest.mark.parametrize(
    'change, message',
    [
        (_state(lambda s: s.clear()), r'state.0.momentum_buffer is missing and was torch.float32 \(3, 4\); .*3 more'),
        (_state(lambda s: s.pop(1)), r'\(state.1.momentum_buffer is missing and was torch.float32 \(3,\)\)'),
        (_state(lambda s: s[1].update(momentum_buffer=torch.zeros(1))), r'is torch.float32 \(1,\) and was .* \(3,\)'),
        (_state(lambda s: s[1].update(momentum_buffer=torch.zeros(3).half())), 'is torch.float16 .* and was torch.flo'),
        (_weight(lambda w: 3), r'encoder.weight is int there and torch.float32 in the model'),
        (_weight(lambda w: w.half()), r'encoder.weight is torch.float16 there and torch.float32 in the model'),
    ],
)
def test_lost_state_and_odd_weights_are_refused_before_training(resume, saved, change, message):
    with pytest.raises(ValueError, match=f'changed.pth cannot be resumed.*{message}'):
        resume(change(torch.load(saved, weights_only=False)))


def _within(part, **values):
    """Changes values in a part of a checkpoint."""
    return lambda checkpoint: checkpoint | {part: dict(checkpoint[part], **values)}


@pytest.mark.parametrize(
    'change, part',
    [
        (lambda c: c | dict(random_states='x'), 'random_states'),
        (lambda c: c | dict(random_states=[{}]), 'random_states'),
        (lambda c: c | dict(random_states=[dict(c['random_states'][0], torch=torch.zeros(3))]), 'random_states'),
        (lambda c: c | dict(position='a'), 'position'),
        (_within('position', batches=10**9), 'position'),
        (_within('position', batches=-1), 'position'),
        (_within('message_hub', log_scalars=dict(a={})), 'message_hub.log_scalars'),
        (_within('message_hub', log_scalars=dict(a=3)), 'message_hub.log_scalars'),
        (_within('message_hub', runtime_info=[1]), 'message_hub.runtime_info'),
        (_within('message_hub', resumed_keys=None), 'message_hub.resumed_keys'),
        (_within('optimizer', multi_task={}), 'optimizer.multi_task'),
        (_within('meta', seed='evil'), 'meta.seed'),
        (_within('meta', iter=10**9), r'meta.iter \(1000000000, and 7 in its log\)'),
        (_within('meta', iter=3), r'meta.iter \(3, and 7 in its log\)'),
        (_within('meta', epoch=10**9), r'meta.epoch \(1000000000, and 1 in its log\)'),
    ],
)
def test_a_part_of_another_form_is_refused_in_one_line(saved, change, part):
    checkpoint = torch.load(saved, weights_only=False)
    check_complete(checkpoint, 'changed.pth')
    with pytest.raises(ValueError, match=f'changed.pth cannot be resumed: it is damaged in {part}. Resume another'):
        check_complete(change(checkpoint), 'changed.pth')


def without(checkpoint: dict, *keys: str) -> dict:
    return {key: value for key, value in checkpoint.items() if key not in keys}


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda c: without(c, 'optimizer'), r'holds no state of the optimizer \(optimizer\)\. To start a new run'),
        (lambda c: without(c, 'meta'), r'holds no progress \(meta\)'),
        (lambda c: without(c, 'message_hub'), r'holds no log \(message_hub\)'),
        (lambda c: without(c, 'param_schedulers'), r'no state of a schedule \(param_schedulers\)'),
        (lambda c: c | dict(state_dict={}), r'holds no weights \(state_dict is empty\)\. Resume another'),
        (lambda c: c | dict(meta={}), r'holds no epoch and iteration \(meta\)'),
        (lambda c: c | dict(meta=dict(epoch='2', iter=None)), r'holds no epoch and iteration \(meta\)'),
        (lambda c: c | dict(message_hub={}), r'holds no log \(message_hub\)'),
        (lambda c: c | dict(meta=7), r'no progress|meta is no dict'),
        (lambda c: dict(state_dict=c['state_dict']), 'holds no progress .*no log .*no state of the optimizer'),
        (
            lambda c: dict(state_dict=c['state_dict'], meta=dict(epoch=2, iter=8, score=1.0)),
            'holds no log .*no state of',
        ),
        (lambda c: c | dict(ema_state_dict=dict(steps=torch.tensor(1))), 'was trained with EMAHook and holds averaged'),
        (lambda c: c | dict(optimizer=dict(a=c['optimizer'], b=c['optimizer'])), 'was trained with several optimizers'),
    ],
)
def test_a_checkpoint_without_a_part_is_refused_before_training(resume, saved, change, message):
    with pytest.raises(ValueError, match=f'changed.pth .*(?:{message})'):
        resume(change(torch.load(saved, weights_only=False)))


def test_a_run_with_an_average_goes_on_with_it_only(tmp_path, capsys):
    hooks = [dict(type='ResumeHook'), dict(type='EMAHook', momentum=0.1)]
    train(quick_config(tmp_path, custom_hooks=hooks, **SHORT))
    train(quick_config(tmp_path, resume=True, custom_hooks=hooks))
    assert 'custom_hooks' not in '\n'.join(
        line for line in capsys.readouterr().out.splitlines() if ' now and was ' in line
    )
    with pytest.raises(ValueError, match='trained with EMAHook'):
        train(quick_config(tmp_path, resume=True, custom_hooks=[dict(type='ResumeHook')], train_cfg__max_epochs=4))


def test_settings_of_a_checkpoint_are_data_and_their_absence_is_said(resume, saved, tmp_path):
    checkpoint = torch.load(saved, weights_only=False)
    code = f'open({str(tmp_path / "executed")!r}, "w")'
    for text in (None, code, '[1]', 5):
        changed = without(checkpoint, SETTINGS) | ({} if text is None else {SETTINGS: text})
        changed['meta'] = dict(checkpoint['meta'], cfg=code, config=code)
        assert 'does not say what it was trained with' in resume(changed)
    assert not (tmp_path / 'executed').exists()
    assert json.loads(checkpoint[SETTINGS])['batch_size'] == 2


def test_the_wrapper_of_this_package_refuses_other_methods_and_says_other_settings(tmp_path, capsys):
    wrapper = dict(
        type='MultiTaskOptimWrapper', optimizer=dict(type='SGD', lr=0.01), shared='encoder', tasks=['a', 'b']
    )
    train(quick_config(tmp_path, optim_wrapper=wrapper, **SHORT))
    other = dict(wrapper, optimizer=dict(type='SGD', lr=0.1), weighting=dict(type='UncertaintyWeighting'))
    with pytest.raises(ValueError, match='weighting: .* in the checkpoint'):
        train(quick_config(tmp_path, resume=True, optim_wrapper=other))
    with pytest.raises(RuntimeError, match='precision: fp32 in the checkpoint, bf16 now'):
        train(quick_config(tmp_path, resume=True, optim_wrapper=dict(wrapper, precision='bf16')))
    capsys.readouterr()
    train(quick_config(tmp_path, resume=True, optim_wrapper=dict(wrapper, optimizer=dict(type='SGD', lr=0.1))))
    assert 'lr is 0.1 now and was 0.01' in capsys.readouterr().out
    assert logging.getLogger('mmengine') is not None
