"""Which checkpoint a run goes on from, and that a new run destroys nothing of an older one."""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmrepmtl.apis import load_config, train
from mmrepmtl.apis.evaluate import _read_constants
from mmrepmtl.apis.start import find_checkpoint, prepare_start
from mmrepmtl.apis.train import single_task_config
from mmrepmtl.registry import HOOKS
from tests.engine.quick import quick_config, same, weights


@HOOKS.register_module()
class KillHook(Hook):
    """Ends a run without ceremony before the third of three epochs."""

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if runner.iter == 8:
            raise RuntimeError('killed')


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """A finished run, and one that was killed after its second epoch."""
    folder = tmp_path_factory.mktemp('runs')
    train(quick_config(folder / 'whole'))
    cfg = quick_config(folder / 'cut')
    cfg.custom_hooks.append(dict(type='KillHook'))
    with pytest.raises(RuntimeError, match='killed'):
        train(cfg)
    return folder


@pytest.fixture
def cut(runs, tmp_path):
    """A copy of the second one, to be damaged."""
    shutil.copytree(runs / 'cut', tmp_path / 'run')
    return tmp_path / 'run'


def equal_to_whole(folder, runs) -> bool:
    return same(weights(folder / 'epoch_3.pth'), weights(runs / 'whole/epoch_3.pth'))


def flip(path) -> None:
    data = bytearray(path.read_bytes())
    data[:40] = bytes(40)
    path.write_bytes(bytes(data))


DAMAGE = {
    'truncated': lambda path: path.write_bytes(path.read_bytes()[:1000]),
    'half': lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    'empty': lambda path: path.write_bytes(b''),
    'text': lambda path: path.write_text('not a checkpoint'),
    'overwritten': flip,
    'missing': lambda path: path.unlink(),
    'weights only': lambda path: torch.save(dict(state_dict=weights(path)), path),
    'a list': lambda path: torch.save([1], path),
}
NAMES = {
    'missing': None,
    'empty': b'',
    'blank': b' \n',
    'garbage': bytes(range(256)),
    'not UTF-8': b'\xff\xfe/epoch_2.pth',
    'null bytes': b'\0' * 40,
    'gone': b'/nowhere/at/all/epoch_9.pth',
    'another type': b'{"checkpoint": 3}',
    'long': b'x' * 100_000,
}


@pytest.mark.parametrize('kind', NAMES)
def test_a_lost_last_checkpoint_goes_on_from_the_newest_whole_one(cut, runs, kind):
    last = cut / 'last_checkpoint'
    last.unlink()
    if NAMES[kind] is not None:
        last.write_bytes(NAMES[kind])
    first = (cut / 'epoch_1.pth').read_bytes()
    notes = []
    assert find_checkpoint(quick_config(cut), notes=notes) == cut / 'epoch_2.pth'
    assert 'last_checkpoint' in notes[0] and 'left out' in notes[0]
    assert 'epoch_2.pth, the newest whole checkpoint (epoch 2, iteration 8)' in notes[-1]
    if kind in ('missing', 'garbage', 'gone'):
        train(quick_config(cut, resume=True))
        assert equal_to_whole(cut, runs) and (cut / 'epoch_1.pth').read_bytes() == first
        assert last.read_text() == str(cut / 'epoch_3.pth')


@pytest.mark.parametrize('kind', DAMAGE)
@pytest.mark.parametrize('named', [True, False])
def test_a_damaged_newest_checkpoint_is_left_out_and_named(cut, runs, kind, named):
    if not named:
        (cut / 'last_checkpoint').unlink()
    else:
        (cut / 'last_checkpoint').write_text(str(cut / 'epoch_2.pth'))
    DAMAGE[kind](cut / 'epoch_2.pth')
    notes = []
    assert find_checkpoint(quick_config(cut), notes=notes) == cut / 'epoch_1.pth'
    text = '\n'.join(notes)
    if named or kind != 'missing':
        assert 'epoch_2.pth' in text
    assert 'epoch_1.pth, the newest whole checkpoint (epoch 1, iteration 4)' in text
    if named and kind in ('half', 'missing'):
        train(quick_config(cut, resume=True))
        assert equal_to_whole(cut, runs)


def test_the_log_says_what_was_left_out(cut, capsys):
    DAMAGE['empty'](cut / 'epoch_2.pth')
    train(quick_config(cut, resume=True))
    log = capsys.readouterr().out
    assert '--resume: left out: ' in log and 'epoch_2.pth is' in log and 'goes on from' in log


def test_progress_counts_not_the_name_or_the_time(cut):
    (cut / 'last_checkpoint').unlink()
    os.rename(cut / 'epoch_2.pth', cut / 'epoch_02.pth')
    os.rename(cut / 'epoch_1.pth', cut / 'epoch_7.pth')
    assert find_checkpoint(quick_config(cut)) == cut / 'epoch_02.pth'
    shutil.copy(cut / 'epoch_7.pth', cut / 'iter_99.pth')
    assert find_checkpoint(quick_config(cut)) == cut / 'epoch_02.pth'


def test_a_checkpoint_that_was_written_but_not_named_is_found(cut):
    (cut / 'last_checkpoint').write_text(str(cut / 'epoch_1.pth'))
    assert find_checkpoint(quick_config(cut)) == cut / 'epoch_1.pth'  # somebody went back
    now = time.time_ns() + 10**9
    os.utime(cut / 'epoch_2.pth', ns=(now, now))
    assert find_checkpoint(quick_config(cut)) == cut / 'epoch_2.pth'  # a kill between two steps


def test_a_newer_one_that_is_damaged_is_said_though_the_named_one_is_taken(cut):
    (cut / 'last_checkpoint').write_text(str(cut / 'epoch_2.pth'))
    (cut / 'epoch_3.pth').write_bytes(b'abc')
    now = time.time_ns() + 10**9
    os.utime(cut / 'epoch_3.pth', ns=(now, now))
    notes = []
    assert find_checkpoint(quick_config(cut), notes=notes) == cut / 'epoch_2.pth'
    assert len(notes) == 1 and 'left out' in notes[0] and 'epoch_3.pth' in notes[0]


def test_a_last_checkpoint_that_is_a_pipe_or_names_another_kind_of_file_counts_as_lost(cut):
    (cut / 'config.py').write_text('model = 1')
    for name in ('config.py', 'last_checkpoint', 'metrics.json'):
        (cut / 'last_checkpoint').write_text(name)
        assert find_checkpoint(quick_config(cut)) == cut / 'epoch_2.pth'
    (cut / 'last_checkpoint').unlink()
    os.mkfifo(cut / 'last_checkpoint')
    notes = []
    assert find_checkpoint(quick_config(cut), notes=notes) == cut / 'epoch_2.pth'
    assert 'no regular file' in notes[0]


def test_none_left_is_refused_and_nothing_is_changed(cut):
    for file in cut.glob('*.pth'):
        file.write_bytes(file.read_bytes()[:500])
    before = {path: path.read_bytes() for path in cut.iterdir() if path.is_file()}
    with pytest.raises(
        ValueError, match='no checkpoint that can be resumed: .*epoch_2.pth .*; .*epoch_1.pth .*--resume PATH'
    ):
        train(quick_config(cut, resume=True))
    assert {path: path.read_bytes() for path in cut.iterdir() if path.is_file()} == before
    for file in cut.glob('*.pth'):
        file.unlink()
    with pytest.raises(ValueError, match='epoch_2.pth, which .*last_checkpoint names, is not in'):
        train(quick_config(cut, resume=True))


@pytest.mark.parametrize('how', ['copied', 'moved'])
def test_a_copied_or_moved_run_goes_on_from_its_own_checkpoints(runs, tmp_path, how):
    shutil.copytree(runs / 'cut', tmp_path / 'old')
    (tmp_path / 'old/last_checkpoint').write_text(str(tmp_path / 'old/epoch_2.pth'))
    new = tmp_path / 'elsewhere' / 'new'
    (shutil.copytree if how == 'copied' else shutil.move)(tmp_path / 'old', new)
    if how == 'copied':  # the original has gone on, or broken, since
        DAMAGE['empty'](tmp_path / 'old/epoch_2.pth')
    notes = []
    assert find_checkpoint(quick_config(new), notes=notes) == new / 'epoch_2.pth'
    assert 'copied or moved' in notes[0] and str(new / 'epoch_2.pth') in notes[0]
    train(quick_config(new, resume=True))
    assert equal_to_whole(new, runs) and (new / 'last_checkpoint').read_text() == str(new / 'epoch_3.pth')
    assert not (tmp_path / 'old/epoch_3.pth').exists()


@pytest.mark.parametrize('last', [True, False])
def test_a_moved_run_goes_on_in_its_folder_whatever_its_own_config_says(runs, cut, tmp_path, capsys, last):
    (config,) = cut.glob('*.py')
    if not last:
        (cut / 'last_checkpoint').unlink()
    before = {path.name: path.read_bytes() for path in (runs / 'cut').iterdir() if path.is_file()}
    old = load_config(config).work_dir
    assert old == str(runs / 'cut') and capsys.readouterr().err == ''
    cfg = load_config(config, resume=True)
    assert f'says work_dir={old}, ' in (said := capsys.readouterr().err) and f'it goes on in {cut};' in said
    cfg.experiment_name += f'_moved_{last}'
    cfg.custom_hooks.pop()  # the one that ends the run
    train(cfg)
    assert equal_to_whole(cut, runs)
    assert {path.name: path.read_bytes() for path in (runs / 'cut').iterdir() if path.is_file()} == before
    # Not where the command line says otherwise, and not for a config that no run has left there.
    assert load_config(config, work_dir=str(tmp_path / 'x'), resume=True).work_dir == str(tmp_path / 'x')
    options = {'work_dir': str(tmp_path / 'y')}
    assert load_config(config, resume=True, cfg_options=options).work_dir == str(tmp_path / 'y')
    assert load_config(shutil.copy(runs / 'cut' / config.name, tmp_path), resume=True).work_dir == old
    assert 'goes on in' not in capsys.readouterr().err


def test_a_folder_of_checkpoints_of_its_own_is_found_moves_too(tmp_path, runs):
    options = dict(default_hooks__checkpoint__out_dir=str(tmp_path / 'out'))
    cfg = quick_config(tmp_path / 'run', **options)
    cfg.custom_hooks.append(dict(type='KillHook'))
    with pytest.raises(RuntimeError, match='killed'):
        train(cfg)
    assert find_checkpoint(quick_config(tmp_path / 'run', **options)) == tmp_path / 'out/run/epoch_2.pth'
    (tmp_path / 'run/last_checkpoint').unlink()
    train(quick_config(tmp_path / 'run', resume=True, **options))
    assert equal_to_whole(tmp_path / 'out/run', runs)


def test_an_empty_folder_starts_anew_and_says_so(tmp_path, runs, capsys):
    train(quick_config(tmp_path / 'new', resume=True))
    assert f'there is no checkpoint in {tmp_path / "new"}, so the run starts anew' in capsys.readouterr().out
    assert equal_to_whole(tmp_path / 'new', runs)


def dumped(cfg, file):
    """A config file, and the config that the command line makes of it with ``--resume``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    cfg.dump(str(file))
    return load_config(file, work_dir=cfg.work_dir, resume=True)


def test_an_empty_folder_starts_from_the_weights_of_the_config_as_without_resume(tmp_path, runs, capsys):
    start, short = str(runs / 'whole/epoch_3.pth'), dict(train_cfg__max_epochs=1)
    train(quick_config(tmp_path / 'a', load_from=start, **short))
    cfg = dumped(quick_config(tmp_path / 'b', load_from=start, **short), tmp_path / 'configs/b.py')
    train(cfg)
    assert f'so the run starts anew from the weights of {start}' in capsys.readouterr().out
    assert cfg.load_from == start and not cfg.resume
    first = weights(tmp_path / 'a/epoch_1.pth')
    assert same(first, weights(tmp_path / 'b/epoch_1.pth')) and not same(first, weights(runs / 'whole/epoch_1.pth'))
    # Once there is a checkpoint, the run goes on from that; the file that it has written says so, too.
    for file in (tmp_path / 'configs/b.py', next((tmp_path / 'b').glob('*.py'))):
        cfg = load_config(file, work_dir=str(tmp_path / 'b'), resume=True)
        prepare_start(cfg)
        assert cfg.load_from == str(tmp_path / 'b/epoch_1.pth') and cfg.resume


def test_tasks_that_are_trained_alone_start_from_the_weights_of_the_config(tmp_path, runs):
    start = str(runs / 'whole/epoch_3.pth')
    options = dict(load_from=start, model__heads=dict(a={}, b={}), val_evaluator=[dict(type='QuickMetric', task='a')])
    cfg = dumped(quick_config(tmp_path / 'stl', **options), tmp_path / 'stl.py')
    alone = single_task_config(cfg, 'a')
    prepare_start(alone)
    assert alone.load_from == start and not alone.resume


def test_a_run_that_left_results_but_no_checkpoint_keeps_them(tmp_path):
    (tmp_path / 'metrics.json').write_text('{"metrics": {"a/rmse": 1.0}, "meta": {}}')
    (tmp_path / 'best.pth').write_bytes(b'precious')
    cfg = quick_config(tmp_path, resume=True)
    notes = prepare_start(cfg)
    (kept,) = tmp_path.glob('previous_*')
    assert sorted(path.name for path in kept.iterdir()) == ['best.pth', 'metrics.json']
    assert 'starts anew' in notes[0] and str(kept) in notes[1] and cfg.get('load_from') is None


def test_a_new_run_moves_the_files_of_an_older_one_aside(cut, capsys):
    before = {path.name: path.read_bytes() for path in cut.glob('*.pth')} | {
        name: (cut / name).read_bytes() for name in ('metrics.json', 'last_checkpoint', 'progress.json')
    }
    train(quick_config(cut, train_cfg__max_epochs=1))
    (kept,) = cut.glob('previous_*')
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before
    assert f'were moved to {kept}: ' in capsys.readouterr().out
    assert [path.name for path in cut.glob('*.pth')] == ['epoch_1.pth']
    train(quick_config(cut, train_cfg__max_epochs=1))
    assert len(list(cut.glob('previous_*'))) == 2


def test_what_the_new_run_starts_from_stays_where_the_config_says(cut):
    train(quick_config(cut, load_from=str(cut / 'epoch_2.pth'), train_cfg__max_epochs=1))
    (kept,) = cut.glob('previous_*')
    assert (kept / 'epoch_2.pth').is_file() and (cut / 'epoch_2.pth').is_file()


def test_going_back_keeps_what_came_after(cut, runs):
    later = (cut / 'epoch_2.pth').read_bytes()
    cfg = quick_config(cut, resume=True, load_from=str(cut / 'epoch_1.pth'))
    notes = prepare_start(cfg)
    (kept,) = cut.glob('previous_*')
    assert (kept / 'epoch_2.pth').read_bytes() == later and 'goes back to' in notes[0]
    # A restart finds the branch that was chosen, although it has not written any checkpoint yet.
    assert find_checkpoint(quick_config(cut)) == cut / 'epoch_1.pth'
    train(cfg)
    assert equal_to_whole(cut, runs)


def test_going_on_in_another_folder_keeps_what_is_there(cut, runs, tmp_path):
    train(quick_config(tmp_path / 'other', train_cfg__max_epochs=1, randomness__seed=9))
    other = (tmp_path / 'other/epoch_1.pth').read_bytes()
    train(quick_config(tmp_path / 'other', resume=True, load_from=str(cut / 'epoch_2.pth')))
    (kept,) = (tmp_path / 'other').glob('previous_*')
    assert (kept / 'epoch_1.pth').read_bytes() == other and equal_to_whole(tmp_path / 'other', runs)


class Malice:
    def __reduce__(self):
        return Path.touch, (Path('executed'),)


def test_a_newest_checkpoint_that_could_run_code_is_refused_not_passed_over(cut, monkeypatch):
    monkeypatch.chdir(cut)
    checkpoint = torch.load(cut / 'epoch_2.pth', weights_only=False)
    torch.save(checkpoint | dict(extra=Malice()), cut / 'epoch_2.pth')
    with pytest.raises(ValueError, match='epoch_2.pth is refused: '):
        train(quick_config(cut, resume=True))
    assert not (cut / 'executed').exists()


@pytest.mark.parametrize('name', ['metrics.json', 'progress.json', 'test_metrics.json', 'constants.json'])
@pytest.mark.parametrize('content', [b'', b'{"metr', b'\xff\xfe', b'[]', b'null'])
def test_damaged_small_files_end_no_resume(cut, name, content):
    (cut / name).write_bytes(content)
    train(quick_config(cut, resume=True))
    assert json.loads((cut / 'metrics.json').read_text())['meta']['epoch'] == 3


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(ValueError, match='the work directory .*file/run cannot be written to, since .*file is a file'):
        train(quick_config(tmp_path / 'file/run'))


@pytest.mark.parametrize(
    'content', [b'', b'{"sou', b'\xff', b'[]', b'null', b'{"source": 1, "metrics": {}}', b'{"source": "x"}']
)
def test_damaged_constants_are_computed_again(tmp_path, content, capsys):
    file = tmp_path / 'constants.json'
    assert _read_constants(file) is None
    file.write_bytes(content)
    assert _read_constants(file) is None and 'constants.json is damaged' in capsys.readouterr().out
    file.write_text('{"source": "x", "metrics": {"a/rmse": 1.0}}')
    assert _read_constants(file)['metrics'] == {'a/rmse': 1.0}


@pytest.mark.parametrize('named', [False, True])
@pytest.mark.parametrize('by_epoch', [False, True])
def test_a_run_without_a_seed_goes_on_with_the_one_that_it_drew(tmp_path, by_epoch, named, capsys):
    checkpoint = 'epoch_{}.pth' if by_epoch else 'iter_{}.pth'
    first, last = (1, 3) if by_epoch else (4, 12)
    np.random.seed(1)
    train(quick_config(tmp_path / 'whole', by_epoch, randomness__seed=None))
    (tmp_path / 'cut').mkdir()
    shutil.copy(tmp_path / 'whole' / checkpoint.format(first), tmp_path / 'cut')
    np.random.seed(2)  # another process: it draws another seed
    start = dict(load_from=str(tmp_path / 'cut' / checkpoint.format(first))) if named else {}
    capsys.readouterr()
    train(quick_config(tmp_path / 'cut', by_epoch, randomness__seed=None, resume=True, **start))
    whole, cut = (torch.load(tmp_path / run / checkpoint.format(last), weights_only=False) for run in ('whole', 'cut'))
    assert same(whole['state_dict'], cut['state_dict'])
    seed = whole['meta']['seed']
    assert f"seed is not set now and was {seed}; the checkpoint's goes on" in capsys.readouterr().out
    assert f'randomness = dict(seed={seed})' in next((tmp_path / 'cut').glob('*.py')).read_text()


def test_another_seed_of_a_method_gives_way_too(cut):
    method = dict(type='PCGrad', seed=8)
    wrapper = dict(type='MultiTaskOptimWrapper', aggregator=method)
    cfg = quick_config(cut, resume=True, randomness__seed=8, optim_wrapper=wrapper)
    assert "seed is 8 now and was 3; the checkpoint's goes on" in prepare_start(cfg)
    assert (cfg.randomness.seed, cfg.optim_wrapper.aggregator.seed) == (3, 3)


@pytest.mark.parametrize('damage', ['copied', 'lost', 'truncated'])
def test_a_runner_of_mmengine_with_the_hook_finds_it_too(cut, runs, damage):
    if damage == 'lost':
        (cut / 'last_checkpoint').unlink()
    elif damage == 'truncated':
        DAMAGE['half'](cut / 'epoch_2.pth')
    runner = Runner.from_cfg(quick_config(cut, resume=True))
    runner.train()
    assert equal_to_whole(cut, runs)
    assert Path(runner._load_from) == cut / ('epoch_1.pth' if damage == 'truncated' else 'epoch_2.pth')
