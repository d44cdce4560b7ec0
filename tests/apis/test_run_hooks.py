"""The hooks that guard a run are there whatever the config says, and once."""

from types import SimpleNamespace

from mmrepmtl.apis.run_hooks import register_run_hooks
from mmrepmtl.engine.hooks import LogHistoryHook, ProgressHook, RanksHook


def registered(*present, quiet: bool = False) -> list:
    runner = SimpleNamespace(hooks=list(present))
    runner.register_hook = runner.hooks.append
    register_run_hooks(runner, quiet)
    return runner.hooks


def test_every_run_has_them():
    assert [type(hook) for hook in registered()] == [LogHistoryHook, RanksHook]


def test_the_configs_own_settings_stay():
    own = LogHistoryHook(keep=7)
    assert [type(hook) for hook in registered(own)] == [LogHistoryHook, RanksHook] and registered(own)[0] is own


def test_a_quiet_run_shows_its_progress_as_the_config_says():
    assert [type(hook) for hook in registered(quiet=True)] == [LogHistoryHook, RanksHook, ProgressHook]
    own = ProgressHook(lines=3)
    assert registered(own, quiet=True)[0] is own and len(registered(own, quiet=True)) == 3
