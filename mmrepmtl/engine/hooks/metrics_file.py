from pathlib import Path

import torch.distributed as dist
from mmengine.dist import broadcast_object_list, is_main_process, master_only
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop

from mmrepmtl.engine.loops import use_exact_loop
from mmrepmtl.engine.optim_wrapper import MultiTaskOptimWrapper
from mmrepmtl.engine.report import describe
from mmrepmtl.evaluation import load_results, save_results
from mmrepmtl.methods.collectives import num_processes
from mmrepmtl.registry import HOOKS

NO_SELECTION = 'last checkpoint, no selection'
METRICS_FILE = 'metrics.json'


def epoch_of(runner) -> int | None:
    """The epochs that are done; None in a loop that counts iterations only, whose epoch stays 0."""
    # The train loop of a run that only validates is a config, which asking for it would build.
    return None if runner.iter > 0 and isinstance(runner.train_loop, IterBasedTrainLoop) else runner.epoch


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
        self._written_at = 0

    def before_run(self, runner) -> None:
        """Has a loop that makes up for a validation in which the run was killed."""
        use_exact_loop(runner)

    def before_train(self, runner) -> None:
        """Says in the log which checkpoint counts; takes up the metrics of the last validation before a resume."""
        runner.logger.info(f'selection: {NO_SELECTION}')
        self.metrics, self._written_at = {}, 0
        if runner.iter > 0:
            found = [self._read(runner) if is_main_process() else None]
            broadcast_object_list(found)
            self.metrics, self._written_at = found[0]

    def has_validated(self, runner) -> bool:
        """Whether the file is of this iteration."""
        return self._written_at >= runner.iter

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

    @staticmethod
    def _read(runner) -> tuple[dict[str, float], int]:
        """The metrics in the file if they are of this iteration, and the iteration that it is of."""
        file = Path(runner.work_dir, METRICS_FILE)
        try:
            metrics, meta = load_results(file)
            iteration = int(meta['iteration'])
        except FileNotFoundError:
            return {}, 0
        except (ValueError, TypeError, KeyError, OSError):
            runner.logger.warning(f'{file} is damaged: it is written anew with the next validation')
            return {}, 0
        if iteration > runner.iter:  # of a run that this one does not go on with
            file.unlink(missing_ok=True)
            return {}, 0
        return (metrics if iteration == runner.iter else {}), iteration

    @master_only
    def _write(self, runner, **meta) -> None:
        wrapper = runner.optim_wrapper
        # Validation inside training follows an epoch that the counter has already taken.
        save_results(
            Path(runner.work_dir, METRICS_FILE),
            self.metrics,
            dict(
                selection=NO_SELECTION,
                epoch=epoch_of(runner),
                iteration=runner.iter,
                seed=runner.seed,
                world_size=num_processes(),
                objective=describe(wrapper) if isinstance(wrapper, MultiTaskOptimWrapper) else None,
            )
            | meta,
        )
