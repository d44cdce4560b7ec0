"""The hooks that every run has, whatever its config says."""

from mmengine.runner import Runner

from mmrepmtl.engine.hooks import LogHistoryHook, RanksHook


def register_run_hooks(runner: Runner) -> None:
    """Adds the hooks that guard a long run, each unless the config has one of its class already."""
    present = {type(hook) for hook in runner.hooks}
    for kind in (LogHistoryHook, RanksHook):
        if kind not in present:
            runner.register_hook(kind())
