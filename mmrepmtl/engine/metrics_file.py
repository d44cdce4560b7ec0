from pathlib import Path

from mmengine.dist import master_only
from mmengine.hooks import Hook

from mmrepmtl.evaluation import save_results
from mmrepmtl.methods.regularizer import num_processes
from mmrepmtl.registry import HOOKS


@HOOKS.register_module()
class MetricsFileHook(Hook):
    """Writes the metrics of each validation to ``metrics.json`` in the work directory, with what they were made by.

    The last validation stands in the file: the checkpoint that it evaluated is the last one, none was selected.

    Attributes:
        metrics: Those of the last validation or test on this rank.
    """

    priority = 'LOW'

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        """Writes the file on the first rank."""
        self.metrics = dict(metrics or {})
        self._write(runner)

    def after_test_epoch(self, runner, metrics: dict | None = None) -> None:
        """Keeps the metrics for who asked for the test."""
        self.metrics = dict(metrics or {})

    @master_only
    def _write(self, runner) -> None:
        describe = getattr(runner.optim_wrapper, 'describe', None)
        # Validation inside training follows an epoch that the counter has already taken.
        save_results(
            Path(runner.work_dir, 'metrics.json'),
            self.metrics,
            dict(
                selection='last checkpoint, no selection',
                epoch=runner.epoch,
                iteration=runner.iter,
                seed=runner.seed,
                world_size=num_processes(),
                objective=describe() if describe else None,
            ),
        )
