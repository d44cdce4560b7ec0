"""Which checkpoint counts: the rules on made-up validations, and in runs of a few seconds."""

import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mmrepmtl.apis import apply_selection, evaluate, load_config, train, train_single_tasks
from mmrepmtl.apis import config as api
from mmrepmtl.apis.select_checkpoint import validates_on_test_set
from mmrepmtl.engine.hooks.metrics_file import MetricsFileHook
from mmrepmtl.engine.hooks.selection import SelectionHook
from mmrepmtl.evaluation import delta_p_task, load_results
from mmrepmtl.utils.checkpoint import load_checkpoint
from tests.tools.harness import make_runner, metrics_at

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / 'tests/tools/tiny.py'
NYUV2 = ROOT / 'configs/nyuv2/rep-mtl_resnet18-d16_conv_b8-20e_nyuv2-96x128.py'
FAST = {'optim_wrapper.diagnostics_interval': 100, 'default_hooks.logger.interval': 100}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def run_hook(folder, validations, **arguments):
    """Runs the hook over {epoch: metrics}; the only weight is the number of the epoch."""
    folder.mkdir(exist_ok=True)
    runner = make_runner(folder, max_epochs=max(validations))
    hook = SelectionHook(**arguments)
    hook.before_train(runner)
    for epoch, metrics in validations.items():
        runner.epoch, runner.iter = epoch, 10 * epoch
        torch.nn.init.constant_(runner.model.weight, epoch)
        hook.after_val_epoch(runner, metrics)
    hook.after_train(runner)
    return hook


@pytest.mark.parametrize(
    ('metric', 'best'),
    [(None, 3), ('a/abs_err', 4), ('b/mIoU', 2), ('a/rmse', 1)],
)
def test_best_val_is_the_best_by_its_rule_and_says_so(tmp_path, metric, best):
    hook = run_hook(tmp_path, {epoch: metrics_at(epoch) for epoch in range(1, 5)}, selection='best-val', metric=metric)
    assert hook.metrics == metrics_at(best)
    checkpoint = load_checkpoint(tmp_path / 'best.pth')
    assert checkpoint['state_dict']['weight'].item() == checkpoint['meta']['epoch'] == best
    metrics, meta = load_results(tmp_path / 'metrics.json')
    assert metrics == metrics_at(best) and (meta['epoch'], meta['iteration']) == (best, 10 * best)
    assert meta['selection'].startswith('best-val: best validation on the validation data by ')
    assert (metric or 'mean relative improvement over the first') in meta['selection']
    assert f'epoch {best}' in checkpoint['meta']['selection']


def test_the_score_is_delta_p_against_the_first_validation(tmp_path):
    run_hook(tmp_path, {epoch: metrics_at(epoch) for epoch in range(1, 5)}, selection='best-val')
    history = json.loads((tmp_path / 'selection.json').read_text())['history']
    # rmse does not count in Delta p.
    expected = [
        100 * ((2.0 - m['a/abs_err']) / 2.0 + (m['b/mIoU'] - 40) / 40) / 2 for m in map(metrics_at, range(1, 5))
    ]
    assert [entry['score'] for entry in history] == pytest.approx(expected)
    assert history[2]['score'] == pytest.approx(delta_p_task(metrics_at(3), metrics_at(1)))


def test_metrics_that_are_not_positive_at_first_do_not_count(tmp_path, caplog):
    validations = {1: {'a/abs_err': 2.0, 'b/mIoU': 0.0}, 2: {'a/abs_err': 1.0, 'b/mIoU': 5.0}}
    assert run_hook(tmp_path, validations, selection='best-val').metrics == validations[2]
    assert "['b/mIoU'] are not positive in the first validation and do not count" in caplog.text
    with pytest.raises(ValueError, match='no metric of the first validation is positive.*--selection-metric'):
        run_hook(tmp_path, {1: {'b/mIoU': 0.0}}, selection='best-val')


def test_a_validation_without_a_value_is_never_the_best(tmp_path):
    validations = {1: {'b/mIoU': 1.0}, 2: {'b/mIoU': 3.0}, 3: {'b/mIoU': math.nan}}
    for metric in (None, 'b/mIoU'):
        assert run_hook(tmp_path, validations, selection='best-val', metric=metric).metrics == {'b/mIoU': 3.0}
    with pytest.raises(ValueError, match='no validation had a score'):
        run_hook(tmp_path, {1: {'b/mIoU': math.nan}}, selection='best-val', metric='b/mIoU')


def test_an_unknown_metric_is_named(tmp_path):
    with pytest.raises(ValueError, match="there is no metric 'c/mIoU', only a/abs_err, a/rmse, b/mIoU"):
        run_hook(tmp_path, {1: metrics_at(1)}, selection='best-val', metric='c/mIoU')
    with pytest.raises(ValueError, match="direction of metric 'c/new' is unknown"):
        SelectionHook('best-val', metric='c/new')


def test_last10_is_the_mean_of_the_last_ten_evaluations(tmp_path):
    validations = {epoch: {'b/mIoU': float(epoch**2), 'a/abs_err': 1.0} for epoch in range(1, 14)}
    hook = run_hook(tmp_path, validations, selection='last10', on_test_set=True)
    expected = np.mean([epoch**2 for epoch in range(4, 14)])
    assert hook.metrics == {'b/mIoU': pytest.approx(expected), 'a/abs_err': pytest.approx(1.0)}
    metrics, meta = load_results(tmp_path / 'metrics.json')
    assert metrics == hook.metrics and not (tmp_path / 'best.pth').exists()
    assert meta['selection'] == 'last10: mean over the evaluations of the last 10 epochs on the test set, no selection'
    validations.pop(7)
    with pytest.raises(ValueError, match=r'epochs \[7\] of the last 10 were not evaluated'):
        run_hook(tmp_path, validations, selection='last10')


def test_a_resume_goes_on_with_what_there_was(tmp_path):
    whole = run_hook(tmp_path / 'whole', {e: metrics_at(e) for e in range(1, 5)}, selection='best-val').metrics
    hook, runner = SelectionHook('best-val'), make_runner(tmp_path)
    hook.before_train(runner)
    for epoch in (1, 2, 3):
        runner.epoch, runner.iter = epoch, 10 * epoch
        hook.after_val_epoch(runner, metrics_at(epoch))
    # Killed after the third validation, resumed from the second epoch: the third is done again.
    hook, runner = SelectionHook('best-val'), make_runner(tmp_path)
    runner.epoch, runner.iter = 2, 20
    runner.train_loop = object()
    hook.before_train(runner)
    for epoch in (3, 4):
        runner.epoch, runner.iter = epoch, 10 * epoch
        hook.after_val_epoch(runner, metrics_at(epoch))
    hook.after_train(runner)
    assert hook.metrics == whole == metrics_at(3)
    assert [entry['epoch'] for entry in json.loads((tmp_path / 'selection.json').read_text())['history']] == [
        1,
        2,
        3,
        4,
    ]


@pytest.mark.parametrize(
    ('hook', 'expected'),
    [
        (MetricsFileHook(), 'selection: last checkpoint, no selection'),
        (SelectionHook('best-val', 'b/mIoU'), 'selection: best-val: best validation on the validation data by b/mIoU'),
        (SelectionHook('last10', on_test_set=True), 'selection: last10: mean over the evaluations of the last 10'),
    ],
)
def test_the_log_begins_with_the_rule(tmp_path, caplog, hook, expected):
    caplog.set_level(logging.INFO)
    hook.before_train(make_runner(tmp_path))
    assert caplog.messages[0].startswith(expected)


def test_an_older_run_in_the_folder_is_forgotten(tmp_path):
    run_hook(tmp_path, {1: {'b/mIoU': 90.0}, 2: {'b/mIoU': 99.0}}, selection='best-val', metric='b/mIoU')
    hook = run_hook(tmp_path, {1: {'b/mIoU': 5.0}, 2: {'b/mIoU': 4.0}}, selection='best-val', metric='b/mIoU')
    assert hook.metrics == {'b/mIoU': 5.0}
    assert load_checkpoint(tmp_path / 'best.pth')['meta']['score'] == 5
    # Also if the new run is killed before its first validation, and resumed.
    SelectionHook('best-val', metric='b/mIoU').before_train(make_runner(tmp_path))
    hook, runner = SelectionHook('best-val', metric='b/mIoU'), make_runner(tmp_path)
    runner.epoch, runner.iter, runner.train_loop = 1, 10, object()
    hook.before_train(runner)
    runner.epoch, runner.iter = 2, 20
    hook.after_val_epoch(runner, {'b/mIoU': 3.0})
    assert hook.metrics == {'b/mIoU': 3.0}


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_the_test_set_selects_nothing_unless_forced():
    with pytest.raises(ValueError, match='would be selected on the test set; use last or last10, or --force-selection'):
        apply_selection(load_config(NYUV2), 'best-val')
    cfg = load_config(NYUV2)
    apply_selection(cfg, 'best-val', force=True)
    hook = cfg.custom_hooks[-1]
    assert (hook.type, hook.selection, hook.on_test_set) == ('SelectionHook', 'best-val', True)
    assert [other.type for other in cfg.custom_hooks].count('MetricsFileHook') == 0
    assert 'on the test set' in SelectionHook('best-val', on_test_set=True).rule
    untouched = load_config(NYUV2)
    apply_selection(untouched, 'last')
    assert untouched.custom_hooks == load_config(NYUV2).custom_hooks


def test_the_same_images_under_another_name_are_the_test_set(tmp_path):
    for split in ('train', 'val'):
        (tmp_path / split / 'image').mkdir(parents=True)
        for index in range(2):
            np.save(tmp_path / split / 'image' / f'{index}.npy', np.zeros((4, 4, 3), np.float32))
    options = {'val_dataloader.dataset.split': 'val', 'test_dataloader.dataset.split': 'test'}
    options |= {f'{loader}_dataloader.dataset.targets': [] for loader in ('val', 'test')}
    cfg = load_config(NYUV2, data_root=str(tmp_path), cfg_options=options)
    assert validates_on_test_set(cfg)
    cfg.val_dataloader.dataset.split = 'train'
    assert not validates_on_test_set(cfg)
    assert not validates_on_test_set(load_config(TINY))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(selection='first'), "'first' is unknown; there are last, best-val, last10"),
        (dict(selection='last10'), 'last10 needs at least 10 epochs'),
        (dict(selection='last10', metric='semseg/mIoU'), 'last10 selects by no metric'),
        (dict(selection='best-val', metric='semseg/new'), "direction of metric 'semseg/new'"),
    ],
)
def test_impossible_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        apply_selection(load_config(TINY), **arguments)


def test_single_tasks_need_a_rule_that_every_task_has():
    with pytest.raises(ValueError, match='alone has no metrics of the others'):
        apply_selection(load_config(TINY, method='stl'), 'best-val', metric='semseg/mIoU')
    cfg = load_config(TINY, method='stl', cfg_options={'train_cfg.max_epochs': 12})
    with pytest.raises(ValueError, match='measured on the test set, but val_dataloader has other'):
        apply_selection(cfg, 'last10')


def test_results_of_other_definitions_are_not_compared():
    cfg = load_config(NYUV2)
    same = dict(test_data=api.test_data(cfg), metric_settings=api.metric_settings(cfg))
    api.check_comparable(cfg, {'a.json': same, 'elsewhere.json': {}})
    other = load_config(NYUV2)
    other.test_evaluator[1].reduction = 'batch'
    meta = same | dict(metric_settings=api.metric_settings(other))
    with pytest.raises(ValueError, match="b.json was measured with other settings of the metric of 'depth': .*batch"):
        api.check_comparable(cfg, {'a.json': same, 'b.json': meta})
    meta = same | dict(metric_settings={'normal': same['metric_settings']['normal']})
    api.check_comparable(cfg, {'alone.json': meta})


@pytest.mark.parametrize(('interval', 'epochs'), [(5, 12), (1, 10), (100, 30)])
def test_last10_has_each_of_the_last_epochs_evaluated(interval, epochs):
    from mmengine.runner.utils import calc_dynamic_intervals

    cfg = load_config(NYUV2, cfg_options={'train_cfg.max_epochs': epochs, 'train_cfg.val_interval': interval})
    cfg.test_evaluator[0].reduction = 'batch'
    apply_selection(cfg, 'last10')
    assert cfg.val_evaluator == cfg.test_evaluator  # these are the numbers that count
    milestones, intervals = calc_dynamic_intervals(interval, cfg.train_cfg.dynamic_intervals)
    evaluated = []
    for epoch in range(1, epochs + 1):  # as EpochBasedTrainLoop does
        step = np.searchsorted(milestones, epoch + 1, side='right')
        if epoch % intervals[step - 1] == 0:
            evaluated.append(epoch)
    assert evaluated[-10:] == list(range(epochs - 9, epochs + 1))
    assert all(epoch % interval == 0 for epoch in evaluated[:-10])


# ---- runs ------------------------------------------------------------------------------------------------------------


def run_config(work_dir, selection, name, resume=False, **arguments):
    options = FAST | arguments.pop('options', {})
    cfg = load_config(TINY, arguments.pop('method', 'ew'), str(work_dir), resume, seed=3, cfg_options=options)
    cfg.experiment_name = f'selection_{name}_{Path(work_dir).parent.name}'
    apply_selection(cfg, selection, **arguments)
    return cfg


def test_a_run_keeps_its_best_checkpoint_also_over_a_resume(tmp_path):
    three = {'train_cfg.max_epochs': 3}
    metrics = train(run_config(tmp_path / 'a', 'best-val', 'whole', metric='depth/abs_err', options=three))
    history = json.loads((tmp_path / 'a/selection.json').read_text())['history']
    best = min(history, key=lambda entry: entry['metrics']['depth/abs_err'])
    assert [entry['epoch'] for entry in history] == [1, 2, 3] and metrics == best['metrics']
    weights = load_checkpoint(tmp_path / 'a/best.pth')['state_dict']
    expected = load_checkpoint(tmp_path / f'a/epoch_{best["epoch"]}.pth')['state_dict']
    assert weights.keys() == expected.keys() and all(torch.equal(weights[key], expected[key]) for key in weights)

    # As if it had been killed between the second checkpoint and its validation.
    state = json.loads((tmp_path / 'a/selection.json').read_text())
    (tmp_path / 'a/selection.json').write_text(json.dumps(state | dict(history=state['history'][:1])))
    (tmp_path / 'a/last_checkpoint').write_text(str(tmp_path / 'a/epoch_2.pth'))
    again = train(run_config(tmp_path / 'a', 'best-val', 'again', True, metric='depth/abs_err', options=three))
    redone = json.loads((tmp_path / 'a/selection.json').read_text())['history']
    assert [entry['epoch'] for entry in redone] == [1, 2, 3] and again == pytest.approx(metrics)
    assert redone[1]['metrics'] == pytest.approx(history[1]['metrics'])

    cfg = run_config(tmp_path / 'a', 'last', 'test')
    tested = evaluate(cfg, tmp_path / 'a/best.pth', constant=False)['metrics']
    stored, meta = load_results(tmp_path / 'a/test_metrics.json')
    assert stored == tested and meta['epoch'] == best['epoch']
    logs = ''.join(path.read_text() for path in (tmp_path / 'a').rglob('*.log'))
    assert f'checkpoint: {tmp_path}/a/best.pth of epoch {best["epoch"]}; selection: best-val: best valid' in logs
    assert f'by depth/abs_err; it is epoch {best["epoch"]}, in best.pth' in logs
    assert meta['selection'].startswith('best-val: best validation on the validation data by depth/abs_err; epoch ')


@pytest.mark.slow
def test_a_run_gives_the_mean_of_its_last_ten_epochs(tmp_path):
    options = {'train_cfg.max_epochs': 11, 'train_cfg.val_interval': 4}
    metrics = train(run_config(tmp_path / 'a', 'last10', 'ten', options=options))
    history = json.loads((tmp_path / 'a/selection.json').read_text())['history']
    assert [entry['epoch'] for entry in history] == list(range(2, 12))
    for key, value in metrics.items():
        assert value == pytest.approx(np.mean([entry['metrics'][key] for entry in history]))
    stored, meta = load_results(tmp_path / 'a/metrics.json')
    assert stored == pytest.approx(metrics) and meta['selection'].startswith('last10: mean over the evaluations')


@pytest.mark.slow
def test_single_tasks_are_measured_at_their_own_best_checkpoints(tmp_path):
    cfg = run_config(tmp_path / 'a', 'best-val', 'stl', method='stl')
    metrics = train_single_tasks(cfg)
    stored, meta = load_results(tmp_path / 'a/stl.json')
    assert stored == metrics and meta['selection'] == 'best-val of each task'
    for task in ('semseg', 'depth', 'normal'):
        assert 'best-val' in load_results(tmp_path / 'a' / task / 'test_metrics.json')[1]['selection']
