"""A checkpoint is whole, named and only then takes the place of an older one, whatever hook options a config has."""

import errno
import os
import resource
from pathlib import Path

import pytest
import torch
from mmengine.hooks import CheckpointHook as PlainHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmrepmtl.apis import train
from mmrepmtl.engine.hooks import CheckpointHook
from mmrepmtl.utils import files
from tests.engine.quick import quick_config, same, weights


def pth(folder) -> list[str]:
    return sorted(path.name for path in Path(folder).glob('*.pth'))


def run(cfg) -> Runner:
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


@pytest.fixture
def events(monkeypatch):
    """The files that are renamed into place and deleted, in order."""
    log = []
    replace, remove = os.replace, os.remove

    def renamed(source, target):
        replace(source, target)
        log.append(f'+{Path(target).name}')

    def removed(path):
        log.append(f'-{Path(path).name}')
        remove(path)

    monkeypatch.setattr(files.os, 'replace', renamed)
    monkeypatch.setattr(os, 'remove', removed)
    return log


@pytest.mark.parametrize('scope', ['mmrepmtl', 'mmengine', 'mmseg'])
def test_every_scope_gets_it_by_the_plain_name(scope):
    hook = HOOKS.build(dict(type='CheckpointHook', interval=1, _scope_=scope if scope != 'mmseg' else 'mmrepmtl'))
    assert isinstance(hook, CheckpointHook)
    if scope == 'mmseg':
        mmseg = pytest.importorskip('mmseg.registry')
        assert isinstance(mmseg.HOOKS.build(dict(type='CheckpointHook', interval=1)), CheckpointHook)


def test_the_old_one_is_deleted_after_the_new_one_is_whole_and_named(tmp_path, events):
    run(quick_config(tmp_path, default_hooks__checkpoint__max_keep_ckpts=1))
    shown = [event for event in events if 'epoch' in event or 'last' in event]
    assert shown == [
        '+epoch_1.pth', '+last_checkpoint',
        '+epoch_2.pth', '+last_checkpoint', '-epoch_1.pth',
        '+epoch_3.pth', '+last_checkpoint', '-epoch_2.pth',
    ]  # fmt: skip
    assert pth(tmp_path) == ['epoch_3.pth']
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'epoch_3.pth')


@pytest.mark.parametrize('keep', [1, 2, 5, -1])
@pytest.mark.parametrize('by_epoch', [True, False])
def test_as_many_are_kept_as_the_config_says(tmp_path, keep, by_epoch):
    run(quick_config(tmp_path, by_epoch, default_hooks__checkpoint__max_keep_ckpts=keep))
    names = ['epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth'] if by_epoch else ['iter_12.pth', 'iter_4.pth', 'iter_8.pth']
    order = sorted(names, key=lambda name: int(name.split('_')[1][:-4]))
    assert pth(tmp_path) == sorted(order[-keep:] if keep > 0 else order)


def test_a_run_killed_before_it_deleted_does_so_when_it_resumes(tmp_path, monkeypatch):
    cfg = quick_config(tmp_path, default_hooks__checkpoint__max_keep_ckpts=1)
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointHook, '_remove', lambda self, name: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr('mmrepmtl.engine.hooks.saving.INTERRUPTED', 'none')
        with pytest.raises(KeyboardInterrupt):
            run(cfg)
    # The first call of all removes the checkpoint of an interruption: epoch 1 is whole and named by then.
    assert (tmp_path / 'last_checkpoint').read_text().endswith('epoch_1.pth')
    removed = CheckpointHook._remove

    def die_at_epoch_1(self, name):
        if name == 'epoch_1.pth':
            raise KeyboardInterrupt
        removed(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointHook, '_remove', die_at_epoch_1)
        with pytest.raises(KeyboardInterrupt):
            train(quick_config(tmp_path, default_hooks__checkpoint__max_keep_ckpts=1, resume=True))
    assert pth(tmp_path) == ['epoch_1.pth', 'epoch_2.pth']
    train(quick_config(tmp_path, default_hooks__checkpoint__max_keep_ckpts=1, resume=True))
    assert pth(tmp_path) == ['epoch_3.pth']


@pytest.mark.parametrize('indicators', [['a/mIoU'], ['a/mIoU', 'a/rmse'], ['auto']])
def test_the_best_so_far_is_deleted_after_the_better_one_and_the_checkpoint_that_names_it(tmp_path, events, indicators):
    save_best = 'auto' if indicators == ['auto'] else indicators
    cfg = quick_config(
        tmp_path, default_hooks__checkpoint__save_best=save_best, default_hooks__checkpoint__rule='greater'
    )
    run(cfg)
    for indicator in indicators:
        name = 'a/rmse' if indicator == 'auto' else indicator
        stem = f'best_{name.replace("/", "_")}'
        own = [event for event in events if stem in event]
        assert own[0].startswith('+') and [event[0] for event in own].count('-') == len(own) // 2
        for index, event in enumerate(events):
            if event.startswith(f'-{stem}'):
                # The last thing written before is the epoch's checkpoint, with the new best one's name.
                before = [other for other in events[:index] if other[0] == '+']
                assert before[-1] == '+last_checkpoint' and before[-2].startswith('+epoch')
        assert len(list(tmp_path.glob(f'{stem}*'))) == 1


def test_options_of_the_hook_keep_their_meaning(tmp_path):
    work, out = tmp_path / 'run', tmp_path / 'out'
    run(
        quick_config(
            work,
            default_hooks__checkpoint__filename_tmpl='state-{}.pt',
            default_hooks__checkpoint__out_dir=str(out),
            default_hooks__checkpoint__max_keep_ckpts=1,
            default_hooks__checkpoint__save_best='a/mIoU',
            default_hooks__checkpoint__rule='greater',
            default_hooks__checkpoint__published_keys=['meta', 'state_dict'],
        )
    )
    names = sorted(path.name for path in (out / 'run').iterdir())
    assert 'state-3.pt' in names and (work / 'last_checkpoint').read_text() == str(out / 'run' / 'state-3.pt')
    published = [name for name in names if name.startswith('state-3-')]
    assert len(published) == 1 and set(torch.load(out / 'run' / published[0], weights_only=False)) == {
        'meta',
        'state_dict',
    }
    assert len([name for name in names if name.startswith('best_')]) == 2  # the file and its published form
    run(
        quick_config(
            tmp_path / 'last', default_hooks__checkpoint__interval=2, default_hooks__checkpoint__save_last=False
        )
    )
    assert pth(tmp_path / 'last') == ['epoch_2.pth']


def test_without_options_it_writes_what_mmengine_writes(tmp_path):
    run(quick_config(tmp_path / 'own'))
    plain = quick_config(tmp_path / 'plain')
    plain.default_hooks.checkpoint.type = PlainHook
    run(plain)
    assert pth(tmp_path / 'own') == pth(tmp_path / 'plain')
    a, b = (torch.load(tmp_path / name / 'epoch_3.pth', weights_only=False) for name in ('own', 'plain'))
    assert a.keys() == b.keys() and same(a['state_dict'], b['state_dict'])
    keys = {'last_ckpt'}
    assert a['message_hub']['runtime_info'].keys() - keys == b['message_hub']['runtime_info'].keys() - keys


def full_disk(monkeypatch, name: str) -> None:
    """Writing the file fails after half of it."""

    class Full:
        def __init__(self, file):
            self._file = file

        def __getattr__(self, key):
            return getattr(self._file, key)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self._file.close()

        def write(self, data):
            self._file.write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    original = files.open_temporary

    def opened(path, ending=''):
        temporary, file = original(path, ending)
        return temporary, Full(file) if Path(path).name == name else file

    monkeypatch.setattr(files, 'open_temporary', opened)


@pytest.mark.parametrize('hook', ['CheckpointHook', PlainHook])
def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(tmp_path, monkeypatch, hook):
    cfg = quick_config(tmp_path, default_hooks__checkpoint__max_keep_ckpts=1)
    whole = quick_config(tmp_path / 'whole')
    cfg.default_hooks.checkpoint.type = hook
    run(whole)
    with monkeypatch.context() as patch:
        full_disk(patch, 'epoch_2.pth')
        with pytest.raises(OSError, match=r'epoch_2.pth .*MB\) could not be written: No space left.*--resume'):
            train(cfg)  # which takes mmengine's own class for ours
    assert pth(tmp_path) == ['epoch_1.pth'] and not list(tmp_path.glob('.*'))
    train(quick_config(tmp_path, default_hooks__checkpoint__max_keep_ckpts=1, resume=True))
    assert same(weights(tmp_path / 'epoch_3.pth'), weights(tmp_path / 'whole/epoch_3.pth'))


def test_a_limit_of_the_system_on_file_sizes_is_one_line_too(tmp_path):
    large = dict(model__width=20_000)  # larger than any log
    run(quick_config(tmp_path, train_cfg__max_epochs=1, **large))
    before, size = resource.getrlimit(resource.RLIMIT_FSIZE), (tmp_path / 'epoch_1.pth').stat().st_size
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, before[1]))
        with pytest.raises(OSError, match='epoch_2.pth .* could not be written: File too large'):
            run(quick_config(tmp_path, resume=True, load_from=str(tmp_path / 'epoch_1.pth'), **large))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert pth(tmp_path) == ['epoch_1.pth'] and weights(tmp_path / 'epoch_1.pth')


def test_a_copy_deletes_nothing_in_the_folder_that_it_was_made_from(tmp_path):
    import shutil

    options = dict(default_hooks__checkpoint__save_best='a/mIoU', default_hooks__checkpoint__rule='greater')
    run(quick_config(tmp_path / 'old', train_cfg__max_epochs=2, **options))
    before = {path: path.read_bytes() for path in (tmp_path / 'old').rglob('*') if path.is_file()}
    shutil.copytree(tmp_path / 'old', tmp_path / 'new')
    checkpoint = torch.load(tmp_path / 'new/epoch_2.pth', weights_only=False)
    assert checkpoint['message_hub']['runtime_info']['best_ckpt'].startswith(str(tmp_path / 'old/best_'))
    checkpoint['message_hub']['runtime_info']['best_score'] = -1e9  # so that a better one comes
    torch.save(checkpoint, tmp_path / 'new/epoch_2.pth')
    train(quick_config(tmp_path / 'new', resume=True, train_cfg__max_epochs=5, **options))
    assert {path: path.read_bytes() for path in (tmp_path / 'old').rglob('*') if path.is_file()} == before
    assert len(list((tmp_path / 'new').glob('best_*'))) == 1


def test_leftovers_are_swept_at_the_next_start(tmp_path):
    left = tmp_path / f'.epoch_2.pth.{"0" * 32}.tmp'
    left.touch()
    run(quick_config(tmp_path))
    assert not left.exists()
    left.touch()
    train(quick_config(tmp_path, resume=True))
    assert not left.exists()
