"""A resumed run equals an uninterrupted one, bit for bit; anything else is refused."""

import copy

import pytest
import torch
from mmengine.runner import Runner

from mmrepmtl.engine.random_state import random_state, set_random_state
from mmrepmtl.utils.checkpoint import load_checkpoint
from tests.engine.harness import REP, REP_MTL, Interrupt, config, parameters, run, wrap
from tests.engine.toy import make_batch, make_model, max_difference

METHODS = {
    'rep-mtl': REP_MTL,
    'uncertainty': dict(weighting=dict(type='UncertaintyWeighting')),
    'pcgrad-rep-mtl': dict(REP_MTL, aggregator=dict(type='PCGrad')),
    'fp16': dict(REP_MTL, precision='fp16', loss_scale=dict(init_scale=256.0, growth_interval=2)),
}


@pytest.mark.parametrize('name', METHODS)
def test_state_dict_carries_the_method_over(name, tmp_path):
    dtype = torch.float32 if name == 'fp16' else torch.float64
    batches = [make_batch(seed=i, dtype=dtype) for i in range(6)]
    model = make_model(dtype=dtype)
    wrapper = wrap(model, **METHODS[name])
    run(model, wrapper, batches[:3])
    torch.save(dict(model=model.state_dict(), optimizer=wrapper.state_dict()), tmp_path / 'state.pt')
    run(model, wrapper, batches[3:])

    state = torch.load(tmp_path / 'state.pt', weights_only=True)
    other = make_model(seed=1, dtype=dtype)
    other.load_state_dict(state['model'])
    resumed = wrap(other, **METHODS[name])
    resumed.load_state_dict(state['optimizer'])
    resumed._inner_count = 3
    run(other, resumed, batches[3:])
    assert max_difference(model, other) == 0
    fresh = make_model(dtype=dtype)
    fresh.load_state_dict(state['model'])
    run(fresh, wrap(fresh, **METHODS[name]), batches[3:])
    assert max_difference(model, fresh) > 0


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(aggregator=dict(type='PCGrad')), "aggregator: None in the checkpoint, {'type': 'PCGrad'"),
        (dict(loss_transform=None), 'loss_transform: log in the checkpoint, None now'),
        (dict(regularizers=[dict(REP, temperature=0.5)]), 'regularizers: '),
        (dict(precision='bf16'), 'precision: fp32'),
    ],
)
def test_another_method_is_refused_unless_forced(change, message):
    settings = dict(loss_transform='log', regularizers=[REP])
    state = wrap(make_model(), **settings).state_dict()
    with pytest.raises(RuntimeError, match=message):
        wrap(make_model(), **{**settings, **change}).load_state_dict(copy.deepcopy(state))
    wrap(make_model(), force_resume=True, **{**settings, **change}).load_state_dict(copy.deepcopy(state))


def test_defaults_and_their_spelling_out_are_the_same_method():
    state = wrap(make_model(), regularizers=[dict(type='RepMTL')]).state_dict()
    wrap(make_model(), regularizers=[dict(type='RepMTL', lambda_tsr=0.9)]).load_state_dict(state)
    for change in (dict(shared='encoder.0'), dict(extra_losses='add'), dict(clip_grad=dict(max_norm=1.0))):
        with pytest.raises(RuntimeError, match=f'{next(iter(change))}: .* in the checkpoint'):
            wrap(make_model(), regularizers=[dict(type='RepMTL')], **change).load_state_dict(copy.deepcopy(state))


@pytest.mark.parametrize(
    'old, new', [('EqualWeighting', 'UncertaintyWeighting'), ('UncertaintyWeighting', 'EqualWeighting')]
)
def test_a_forced_resume_keeps_the_model_and_drops_the_other_method(old, new):
    model = make_model()
    saved = wrap(model, weighting=dict(type=old))
    run(model, saved, [make_batch()])
    other = wrap(model, weighting=dict(type=new), force_resume=True)
    other.load_state_dict(copy.deepcopy(saved.state_dict()))
    first = next(model.parameters())
    assert torch.equal(other.optimizer.state[first]['momentum_buffer'], saved.optimizer.state[first]['momentum_buffer'])
    run(model, other, [make_batch(seed=1)])
    assert len(other.optimizer.param_groups) == 1 + (new == 'UncertaintyWeighting')


def test_another_number_of_processes_or_optim_wrapper_is_refused():
    state = wrap(make_model()).state_dict()
    state['multi_task']['world_size'] = 4
    with pytest.raises(RuntimeError, match='number of processes: 4 in the checkpoint, 1 now'):
        wrap(make_model()).load_state_dict(state)
    state.pop('multi_task')
    with pytest.raises(RuntimeError, match='not written by MultiTaskOptimWrapper'):
        wrap(make_model()).load_state_dict(state)


def test_random_states_round_trip():
    import random

    import numpy as np

    state = random_state()
    drawn = random.random(), np.random.rand(), torch.rand(2).tolist()
    set_random_state(state)
    assert (random.random(), np.random.rand(), torch.rand(2).tolist()) == drawn


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    Runner(experiment_name='whole', **config(tmp_path / 'whole')).train()
    interrupted = Runner(experiment_name='first', **config(tmp_path / 'cut'))
    interrupted.register_hook(Interrupt())
    with pytest.raises(KeyboardInterrupt):
        interrupted.train()
    torch.rand(5)
    Runner(experiment_name='second', **config(tmp_path / 'cut', resume=True)).train()
    whole, cut = parameters(tmp_path / 'whole/epoch_3.pth'), parameters(tmp_path / 'cut/epoch_3.pth')
    assert [name for name, _ in whole] == [name for name, _ in cut]
    different = [name for (name, a), (_, b) in zip(whole, cut, strict=True) if not torch.equal(a, b)]
    assert different == []
    states = load_checkpoint(tmp_path / 'whole/epoch_3.pth')['random_states']
    assert len(states) == 1 and torch.equal(
        states[0]['torch'], load_checkpoint(tmp_path / 'cut/epoch_3.pth')['random_states'][0]['torch']
    )


def test_how_often_one_validates_does_not_change_the_training(tmp_path):
    Runner(experiment_name='often', **config(tmp_path / 'often', train_cfg=dict(by_epoch=True, max_epochs=2))).train()
    Runner(
        experiment_name='never',
        **config(tmp_path / 'never', train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=9, val_begin=9)),
    ).train()
    for (name, a), (_, b) in zip(
        parameters(tmp_path / 'often/epoch_2.pth'), parameters(tmp_path / 'never/epoch_2.pth'), strict=True
    ):
        assert torch.equal(a, b), name
