"""A run that is cut after any iteration and resumed goes on as if nothing had been: every tensor, bit for bit.

Each cut makes one iteration from a checkpoint of the whole run, and its checkpoint must equal the next one of the whole
run: weights, optimizer, method, schedulers, log, random states. So by induction the rest of the run is equal too.
"""

import numpy as np
import pytest
import torch
from mmengine.runner import Runner

from mmrepmtl.evaluation import load_results
from mmrepmtl.utils.checkpoint import load_checkpoint
from tests.engine.exact_runs import METHODS, Stop, StopHook, differences, merged, run, toy_config, weighting


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Without mmengine's report on the machine, which takes longer than a run."""
    monkeypatch.setattr(Runner, '_log_env', lambda *args: None)
    torch.set_num_threads(1)


def check(folder, cuts, **config):
    """Compares every cut with the whole run; ``cuts`` are numbers of iterations."""
    whole = folder / 'whole'
    run(toy_config(whole, **config))
    for cut in cuts:
        start = dict(resume=True, load_from=str(whole / f'iter_{cut}.pth'))
        run(toy_config(folder / f'cut{cut}', **merged(config, start)), StopHook(before=cut + 1))
        name = f'iter_{cut + 1}.pth'
        assert differences(whole / name, folder / f'cut{cut}' / name) == [], f'after {cut} iterations'


@pytest.mark.parametrize('loop', ['epoch', 'iter'])
def test_a_run_goes_on_exactly_after_any_iteration(tmp_path, loop):
    check(tmp_path, range(1, 12), loop=loop)


@pytest.mark.parametrize('seed', [None, 8])
@pytest.mark.parametrize('loop', ['epoch', 'iter'])
def test_the_seed_of_the_checkpoint_goes_on_whatever_the_config_says(tmp_path, loop, seed):
    np.random.seed(1)
    run(toy_config(tmp_path / 'whole', loop=loop, randomness=dict(seed=None if seed is None else 3)))
    np.random.seed(2)  # another process: it draws another seed
    start = dict(resume=True, load_from=str(tmp_path / 'whole/iter_5.pth'))
    runner = run(toy_config(tmp_path / 'cut', loop=loop, randomness=dict(seed=seed), **start), distract=False)
    assert differences(tmp_path / 'whole/iter_12.pth', tmp_path / 'cut/iter_12.pth') == []
    stored = load_checkpoint(tmp_path / 'whole/iter_5.pth')['meta']['seed']
    assert runner.seed == stored != seed


@pytest.mark.slow
@pytest.mark.parametrize('persistent', [False, True])
@pytest.mark.parametrize('loop', ['epoch', 'iter'])
def test_workers_change_nothing(tmp_path, loop, persistent):
    check(tmp_path, [2, 4, 7], loop=loop, workers=2, persistent=persistent)
    run(toy_config(tmp_path / 'alone', loop=loop))  # nor does their number
    assert differences(tmp_path / 'whole/iter_12.pth', tmp_path / 'alone/iter_12.pth') == []


@pytest.mark.parametrize('name', METHODS)
def test_every_method_goes_on_exactly_inside_an_accumulation_window(tmp_path, name):
    short = dict(train_cfg=dict(max_iters=7), optim_wrapper=dict(accumulative_counts=3))
    check(tmp_path, [1, 2, 3, 5, 6], loop='iter', **merged(METHODS[name], short))


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in METHODS if name != 'sdmgrad'])
def test_every_method_goes_on_exactly_inside_an_epoch(tmp_path, name):
    # A window of two lies across the end of an epoch of five batches.
    changes = dict(train_dataloader=dict(dataset=dict(size=13)), optim_wrapper=dict(accumulative_counts=2))
    check(tmp_path, [3, 5, 7, 10], **merged(METHODS[name], changes))


@pytest.mark.parametrize('name', ['rlw', 'dwa', 'rep-mtl'])
def test_methods_that_count_epochs_or_steps(tmp_path, name):
    config = weighting('DWA') if name == 'dwa' else METHODS[name]
    check(tmp_path, [2, 4, 6, 9], **config)


def test_famo_goes_on_between_windows_and_is_refused_inside_one(tmp_path):
    config = dict(loop='iter', **merged(weighting('FAMO'), dict(optim_wrapper=dict(accumulative_counts=2))))
    check(tmp_path, [2, 4], **config)
    inside = toy_config(tmp_path / 'cut', **config, resume=True, load_from=str(tmp_path / 'whole/iter_3.pth'))
    with pytest.raises(ValueError, match='inside an accumulation window of FAMO.*resume from a checkpoint between two'):
        run(inside)


@pytest.mark.parametrize('loop', ['epoch', 'iter'])
@pytest.mark.parametrize('begin', [0, 6])
def test_a_moving_average_goes_on_exactly(tmp_path, loop, begin):
    for priority in ('NORMAL', 'LOWEST'):
        ema = dict(type='EMAHook', momentum=0.3, begin_iter=begin, priority=priority)
        hooks = dict(custom_hooks=[dict(type='ResumeHook'), ema])
        check(tmp_path / priority, [3, 5, 8], loop=loop, **hooks)


@pytest.mark.parametrize('sampler', ['DefaultSampler', 'EpochInfiniteSampler', 'EpochSampler'])
def test_iteration_loops_with_samplers_of_any_kind(tmp_path, sampler):
    kind = sampler if sampler == 'DefaultSampler' else f'mmrepmtl.{sampler}'
    check(tmp_path, [3, 4, 5, 9], loop='iter', train_dataloader=dict(sampler=dict(type=kind)))


def test_a_plain_optim_wrapper_goes_on_exactly_inside_a_window(tmp_path):
    optimizer = dict(type='SGD', lr=0.01, momentum=0.9)
    for part in ('whole', 'cut'):
        settings = toy_config(tmp_path / part, loop='iter', train_cfg=dict(max_iters=6))
        settings['optim_wrapper'] = dict(type='OptimWrapper', optimizer=optimizer, accumulative_counts=3)
        if part == 'cut':
            settings |= dict(resume=True, load_from=str(tmp_path / 'whole/iter_4.pth'))
        run(settings)
    assert differences(tmp_path / 'whole/iter_6.pth', tmp_path / 'cut/iter_6.pth') == []


def test_an_epoch_is_as_long_as_ever_after_a_resume_inside_it(tmp_path):
    run(toy_config(tmp_path / 'a'), StopHook(before=6))
    runner = run(toy_config(tmp_path / 'a', resume=True))
    assert (runner.iter, runner.epoch) == (12, 3)
    assert not (tmp_path / 'a/iter_13.pth').exists()


def test_another_length_of_the_epochs_is_refused_inside_one_only(tmp_path):
    run(toy_config(tmp_path / 'whole'))
    shorter = dict(train_dataloader=dict(batch_size=6), resume=True)
    with pytest.raises(ValueError, match='after 2 of the 4 batches of epoch 2, and an epoch has 2 batches now'):
        run(toy_config(tmp_path / 'cut', **shorter, load_from=str(tmp_path / 'whole/iter_6.pth')))
    by_epoch = dict(default_hooks=dict(checkpoint=dict(by_epoch=True)))
    run(toy_config(tmp_path / 'end', **by_epoch))
    runner = run(toy_config(tmp_path / 'other', **shorter, load_from=str(tmp_path / 'end/epoch_2.pth')))
    assert runner.epoch == 3 and runner.iter == 8 + 2


# ---- validations -----------------------------------------------------------------------------------------------------


def hooks(selection):
    """The hooks of a run that selects or does not."""
    select = dict(type='SelectionHook', selection='best-val', metric='a/abs_err')
    return dict(custom_hooks=[dict(type='ResumeHook'), select if selection else dict(type='MetricsFileHook')])


@pytest.mark.parametrize('selection', [False, True])
@pytest.mark.parametrize('loop', ['epoch', 'iter'])
@pytest.mark.parametrize('killed_in', [8, 12])
def test_the_validation_that_a_run_was_killed_in_is_made_up_for(tmp_path, loop, selection, killed_in):
    save_best = dict(default_hooks=dict(checkpoint=dict(save_best='a/abs_err', rule='less')))
    config = merged(hooks(selection), save_best)
    whole = run(toy_config(tmp_path / 'whole', loop=loop, **config))
    run(toy_config(tmp_path / 'cut', loop=loop, **config), StopHook(in_validation=killed_in))
    again = run(toy_config(tmp_path / 'cut', loop=loop, resume=True, **config))
    for name in ('metrics.json', 'selection.json') if selection else ('metrics.json',):
        assert (tmp_path / 'cut' / name).read_text() == (tmp_path / 'whole' / name).read_text()
    best = [sorted(path.name for path in (tmp_path / part).glob('best*')) for part in ('whole', 'cut')]
    assert best[0] == best[1] != []
    assert differences(tmp_path / 'whole/iter_12.pth', tmp_path / 'cut/iter_12.pth') == []
    assert again.message_hub.get_info('best_score') == whole.message_hub.get_info('best_score')


@pytest.mark.parametrize('selection', [False, True])
@pytest.mark.parametrize('loop', ['epoch', 'iter'])
def test_a_finished_run_says_so_and_changes_nothing(tmp_path, loop, selection, monkeypatch):
    config = hooks(selection)
    first = run(toy_config(tmp_path / 'a', loop=loop, **config))
    files = {path.name: path.read_bytes() for path in (tmp_path / 'a').iterdir() if path.suffix in ('.pth', '.json')}
    said = []
    monkeypatch.setattr('mmengine.logging.MMLogger.info', lambda self, text, *args: said.append(str(text)))
    again = run(toy_config(tmp_path / 'a', loop=loop, resume=True, **config))
    assert any('the run has ended' in text and 'nothing is left to do' in text for text in said)
    assert {path.name: path.read_bytes() for path in (tmp_path / 'a').iterdir() if path.name in files} == files
    (old,), (new,) = ([hook for hook in runner.hooks if hasattr(hook, 'metrics')] for runner in (first, again))
    assert old.metrics == new.metrics != {}


EMA = dict(type='EMAHook', momentum=0.5)


@pytest.mark.parametrize('loop', ['epoch', 'iter'])
@pytest.mark.parametrize('priority', [None, 'VERY_HIGH', 'NORMAL', 'LOWEST'])
def test_the_best_weights_are_those_that_were_evaluated(tmp_path, loop, priority):
    select = dict(type='SelectionHook', selection='best-val', metric='a/abs_err')
    ema = [] if priority is None else [dict(EMA, priority=priority)]
    save_best = dict(default_hooks=dict(checkpoint=dict(save_best='a/abs_err', rule='less')))
    config = dict(custom_hooks=[select, dict(type='ResumeHook'), *ema], **save_best)
    run(toy_config(tmp_path / 'a', loop=loop, **config))
    metrics, meta = load_results(tmp_path / 'a/metrics.json')
    (mmengines,) = (tmp_path / 'a').glob('best_a_abs_err_iter_*.pth')
    assert load_checkpoint(mmengines)['meta']['iter'] == meta['iteration']
    for file in (tmp_path / 'a/best.pth', mmengines):
        assert evaluated(file, tmp_path / 'b') == metrics
    stored = load_checkpoint(tmp_path / 'a/best.pth')['meta']
    assert stored['metrics'] == metrics and stored['epoch'] == (None if loop == 'iter' else stored['iter'] // 4)
    where = f'iteration {stored["iter"]}' if loop == 'iter' else f'epoch {stored["epoch"]}'
    assert stored['selection'].endswith(f'; {where}')


@pytest.mark.parametrize('priority', ['NORMAL', 'LOWEST'])
def test_the_last_checkpoint_is_what_the_last_validation_evaluated(tmp_path, priority):
    config = dict(custom_hooks=[dict(type='MetricsFileHook'), dict(type='ResumeHook'), dict(EMA, priority=priority)])
    run(toy_config(tmp_path / 'a', loop='iter', **config))
    assert evaluated(tmp_path / 'a/iter_12.pth', tmp_path / 'b') == load_results(tmp_path / 'a/metrics.json')[0]
    meta = load_results(tmp_path / 'a/metrics.json')[1]
    assert (meta['epoch'], meta['iteration']) == (None, 12)


def evaluated(checkpoint, folder) -> dict:
    """The metrics of a validation of the weights of a file."""
    config = toy_config(folder, custom_hooks=[dict(type='MetricsFileHook')])
    run.count += 1
    runner = Runner(experiment_name=f'evaluated_{run.count}', **config)
    runner.model.load_state_dict(load_checkpoint(checkpoint)['state_dict'])
    return runner.val()


def test_last10_is_refused_before_an_iteration_loop_trains(tmp_path):
    select = dict(custom_hooks=[dict(type='SelectionHook', selection='last10')])
    with pytest.raises(ValueError, match='last 10 epochs, and the train loop counts iterations'):
        run(toy_config(tmp_path / 'a', loop='iter', **select))
    assert not list((tmp_path / 'a').glob('*.pth'))


def test_a_kill_is_no_swallowed_error():
    assert not issubclass(Stop, Exception)
