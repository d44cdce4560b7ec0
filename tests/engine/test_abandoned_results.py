"""Numbers of a run that was gone back from are never reported as those of the run that takes its place."""

import json

import pytest
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmrepmtl.apis import train
from mmrepmtl.evaluation import load_results
from mmrepmtl.registry import HOOKS
from mmrepmtl.utils.checkpoint import load_checkpoint
from tests.engine.quick import quick_config

BEST = dict(type='SelectionHook', selection='best-val', metric='a/mIoU')


@HOOKS.register_module()
class KillInValidationHook(Hook):
    """Ends a run without ceremony in its last validation."""

    def before_val_iter(self, runner, batch_idx, data_batch=None) -> None:
        if runner.iter == 12:
            raise RuntimeError('killed')


def config(folder, selecting=True, kill=False, **changes):
    cfg = quick_config(folder, **changes)
    cfg.custom_hooks[1] = BEST if selecting else dict(type='MetricsFileHook')
    if kill:
        cfg.custom_hooks.append(dict(type='KillInValidationHook'))
    return cfg


@pytest.mark.parametrize('selecting', [True, False])
@pytest.mark.parametrize('how', ['named', 'found'])
def test_a_run_killed_in_its_last_validation_reports_its_own_numbers(tmp_path, selecting, how):
    train(config(tmp_path / 'run', selecting))
    old = json.loads((tmp_path / 'run/metrics.json').read_text())['metrics']
    changes = dict(train_dataloader__sampler__shuffle=False, optim_wrapper__clip_grad=dict(max_norm=1e-6))
    start = dict(resume=True, load_from=str(tmp_path / 'run/epoch_2.pth')) if how == 'named' else dict(resume=True)
    if how == 'found':
        (tmp_path / 'run/epoch_3.pth').write_bytes(b'')
    with pytest.raises(RuntimeError, match='killed'):
        train(config(tmp_path / 'run', selecting, True, **start, **changes))
    train(config(tmp_path / 'run', selecting, resume=True, **changes))
    train(config(tmp_path / 'other', selecting, resume=True, load_from=str(tmp_path / 'run/epoch_2.pth'), **changes))
    new = load_results(tmp_path / 'run/metrics.json')[0]
    assert new == load_results(tmp_path / 'other/metrics.json')[0]
    if not selecting:
        assert new != old
        return
    history = [json.loads((tmp_path / name / 'selection.json').read_text())['history'] for name in ('run', 'other')]
    assert history[0] == history[1] and [entry['epoch'] for entry in history[0]] == [1, 2, 3]
    best = [load_checkpoint(tmp_path / name / 'best.pth')['meta'] for name in ('run', 'other')]
    assert best[0]['iter'] == best[1]['iter'] and best[0]['metrics'] == best[1]['metrics']


def test_what_is_later_is_kept_elsewhere(tmp_path):
    train(config(tmp_path))
    later = {name: (tmp_path / name).read_bytes() for name in ('selection.json', 'epoch_3.pth')}
    train(config(tmp_path, resume=True, load_from=str(tmp_path / 'epoch_2.pth')))
    (kept,) = tmp_path.glob('previous_*')
    assert {name: (kept / name).read_bytes() for name in later} == later


def test_a_runner_of_mmengine_forgets_them_too(tmp_path):
    train(config(tmp_path, selecting=False))
    cfg = config(tmp_path, False, True, resume=True, load_from=str(tmp_path / 'epoch_2.pth'))
    with pytest.raises(RuntimeError, match='killed'):
        Runner.from_cfg(cfg).train()
    assert json.loads((tmp_path / 'progress.json').read_text()) == dict(validated=8)
    assert load_results(tmp_path / 'metrics.json')[1]['iteration'] == 8
