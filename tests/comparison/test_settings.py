"""Settings that make another config, and settings that do not."""

import pytest

from mmrepmtl.apis.config import load_config
from mmrepmtl.comparison.settings import differences, settings_hash, settings_of
from tests.cli.harness import TINY


def settings(**options):
    changed = {key.replace('__', '.'): value for key, value in options.items()}
    return settings_of(load_config(TINY, method='ew', work_dir='x', seed=0, cfg_options=changed))


@pytest.mark.parametrize(
    'options',
    [
        dict(work_dir='elsewhere'),
        dict(train_dataloader__dataset__data_root='/data', test_dataloader__dataset__cache_dir='/cache'),
        dict(train_dataloader__num_workers=2, default_hooks__logger__interval=7),
        dict(default_hooks__checkpoint__interval=5, log_level='DEBUG', experiment_name='other'),
        dict(default_hooks__task_gradients=dict(type='TaskGradientsHook', interval=2)),
    ],
)
def test_folders_logs_and_workers_change_nothing(options):
    assert settings_hash(settings(**options)) == settings_hash(settings())


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        (dict(train_cfg__max_epochs=3), 'train_cfg.max_epochs was 2 and is 3'),
        (dict(optim_wrapper__loss_transform='log'), 'optim_wrapper.loss_transform was null and is "log"'),
        (dict(train_dataloader__dataset__num_samples=8), 'train_dataloader.dataset.num_samples was 16 and is 8'),
        (dict(model__encoder__in_chans=3), 'model.encoder.in_chans was not set and is 3'),
    ],
)
def test_what_changes_the_numbers_changes_the_hash_and_is_named(options, said):
    before, after = settings(), settings(**options)
    assert settings_hash(before) != settings_hash(after)
    assert differences(before, after) == said


def test_the_interval_of_checkpoints_counts_where_the_end_has_none():
    def hashed(**checkpoint):
        return settings_hash(
            settings(**{f'default_hooks__checkpoint__{key}': value for key, value in checkpoint.items()})
        )

    assert hashed(interval=2, save_last=True) == hashed(interval=3) == settings_hash(settings())
    assert len({hashed(interval=2, save_last=False), hashed(interval=3, save_last=False), hashed(interval=2)}) == 3
    # How many are kept is no matter.
    assert hashed(save_last=False, max_keep_ckpts=1) == hashed(save_last=False, max_keep_ckpts=2)


def test_the_order_of_heads_counts_and_that_of_other_keys_does_not():
    before = settings()
    heads = before['model']['heads']
    turned = dict(reversed(before.items())) | dict(model=dict(before['model'], heads=dict(reversed(heads.items()))))
    assert settings_hash(turned) == settings_hash(before)  # what the hash gets is sorted
    cfg = load_config(TINY, method='ew', work_dir='x', seed=0)
    cfg.model.heads = {name: dict.__getitem__(cfg.model.heads, name) for name in reversed(list(heads))}
    assert settings_hash(settings_of(cfg)) != settings_hash(before)


def test_many_differences_are_cut():
    assert differences({str(i): i for i in range(7)}, {}).endswith('; and 2 more')
