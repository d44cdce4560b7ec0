"""The Runner, and the hooks that every run has, whatever its config says."""

from mmengine.runner import Runner

from mmrepmtl.engine.hooks import LogHistoryHook, ProgressHook, RanksHook
from mmrepmtl.engine.quiet_runner import QuietRunner


def runner_class(quiet: bool) -> type[Runner]:
    """mmengine's Runner, or the one whose log is in its file only."""
    return QuietRunner if quiet else Runner


def register_run_hooks(runner: Runner, quiet: bool = False) -> None:
    """Adds the hooks that guard a long run, each unless the config has one of its class already.

    Args:
        runner: The runner, built.
        quiet: Whether the progress is shown too, as the log is not.
    """
    present = {type(hook) for hook in runner.hooks}
    for kind in (LogHistoryHook, RanksHook, *([ProgressHook] if quiet else [])):
        if kind not in present:
            runner.register_hook(kind())
