from pathlib import Path

import torch.distributed as dist
from mmengine.dist import master_only
from mmengine.hooks import Hook

from mmrepmtl.engine.optim_wrapper import MultiTaskOptimWrapper
from mmrepmtl.engine.report import describe
from mmrepmtl.evaluation import save_results
from mmrepmtl.methods.collectives import num_processes
from mmrepmtl.registry import HOOKS

NO_SELECTION = 'last checkpoint, no selection'


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

    def before_train(self, runner) -> None:
        """Says in the log which checkpoint counts."""
        runner.logger.info(f'selection: {NO_SELECTION}')

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        """Writes the file on the first rank."""
        self.metrics = dict(metrics or {})
        self._compare_ranks(runner)
        self._write(runner)

    def after_test_epoch(self, runner, metrics: dict | None = None) -> None:
        """Keeps the metrics for who asked for the test."""
        self.metrics = dict(metrics or {})

    def _compare_ranks(self, runner) -> None:
        """Stops if the ranks disagree: then an evaluation was sharded wrongly, and no number of it means anything."""
        if num_processes() == 1:
            return
        everyone = [None] * num_processes()
        dist.all_gather_object(everyone, self.metrics)
        # As text, in which NaN (a task without labels) equals itself.
        if len({str(sorted(metrics.items())) for metrics in everyone}) > 1:
            raise RuntimeError(f'MetricsFileHook: the ranks computed different metrics: {everyone}')
        runner.logger.info(f'MetricsFileHook: all {len(everyone)} ranks computed the same metrics')

    @master_only
    def _write(self, runner, **meta) -> None:
        wrapper = runner.optim_wrapper
        # Validation inside training follows an epoch that the counter has already taken.
        save_results(
            Path(runner.work_dir, 'metrics.json'),
            self.metrics,
            dict(
                selection=NO_SELECTION,
                epoch=runner.epoch,
                iteration=runner.iter,
                seed=runner.seed,
                world_size=num_processes(),
                objective=describe(wrapper) if isinstance(wrapper, MultiTaskOptimWrapper) else None,
            )
            | meta,
        )
