"""The hooks that guard a run are there whatever the config says, and once."""

from types import SimpleNamespace

from mmrepmtl.apis.run_hooks import register_run_hooks
from mmrepmtl.engine.hooks import LogHistoryHook, RanksHook


def registered(*present) -> list:
    runner = SimpleNamespace(hooks=list(present))
    runner.register_hook = runner.hooks.append
    register_run_hooks(runner)
    return runner.hooks


def test_every_run_has_them():
    assert [type(hook) for hook in registered()] == [LogHistoryHook, RanksHook]


def test_the_configs_own_settings_stay():
    own = LogHistoryHook(keep=7)
    assert [type(hook) for hook in registered(own)] == [LogHistoryHook, RanksHook] and registered(own)[0] is own
