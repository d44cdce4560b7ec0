"""Writes the metrics of each validation to a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner

from mmrepmtl.engine.loops import use_exact_loop
from mmrepmtl.engine.optim_wrapper import MultiTaskOptimWrapper
from mmrepmtl.engine.report import describe
from mmrepmtl.evaluation import load_results, save_results
from mmrepmtl.methods.collectives import num_processes
from mmrepmtl.registry import HOOKS

NO_SELECTION = 'last checkpoint, no selection'
METRICS_FILE = 'metrics.json'


def epoch_of(runner: Runner) -> int | None:
    """Returns the epochs that are done; None in a loop that counts iterations only, whose epoch stays 0."""
    # In a run that only validates the train loop is a config, and reading the property would build the loop.
    return None if runner.iter > 0 and isinstance(runner.train_loop, IterBasedTrainLoop) else runner.epoch


@HOOKS.register_module()
class MetricsFileHook(Hook):
    """Writes the metrics of each validation to ``metrics.json`` in the work directory, with facts about the run.

    The file holds the last validation, which is that of the last checkpoint: none is selected.

    Attributes:
        metrics: The metrics of the last validation or test on this rank.
    """

    priority = 'LOW'

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self._written_at = 0

    def before_run(self, runner: Runner) -> None:
        """Replaces mmengine's loop by one that repeats a validation in which the run was killed."""
        use_exact_loop(runner)

    def before_train(self, runner: Runner) -> None:
        """Logs which checkpoint counts; in a resumed run reads the metrics of the last validation."""
        runner.logger.info(f'selection: {NO_SELECTION}')
        self.metrics, self._written_at = {}, 0
        if runner.iter > 0:
            found = [self._read(runner) if is_main_process() else ({}, 0)]
            broadcast_object_list(found)
            self.metrics, self._written_at = found[0]

    def has_validated(self, runner: Runner) -> bool:
        """Whether the file holds the validation of this iteration."""
        return self._written_at >= int(runner.iter)

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, float] | None = None) -> None:
        """Writes the file on the first rank."""
        self.metrics = dict(metrics or {})
        self._compare_ranks(runner)
        self._write(runner)

    def after_test_epoch(self, runner: Runner, metrics: Mapping[str, float] | None = None) -> None:
        """Keeps the metrics for the caller of the test."""
        self.metrics = dict(metrics or {})

    def _compare_ranks(self, runner: Runner) -> None:
        """Raises RuntimeError if the ranks have different metrics: the evaluation was then sharded wrongly."""
        if num_processes() == 1:
            return
        everyone: list[dict[str, float]] = [{}] * num_processes()
        dist.all_gather_object(everyone, self.metrics)
        # As text, in which NaN (a task without labels) equals itself.
        if len({str(sorted(metrics.items())) for metrics in everyone}) > 1:
            raise RuntimeError(f'MetricsFileHook: the ranks computed different metrics: {everyone}')
        runner.logger.info(f'MetricsFileHook: all {len(everyone)} ranks computed the same metrics')

    @staticmethod
    def _read(runner: Runner) -> tuple[dict[str, float], int]:
        """Reads the metrics in the file, if they are of this iteration, and the iteration of the file."""
        file = Path(runner.work_dir, METRICS_FILE)
        try:
            metrics, meta = load_results(file)
            iteration = int(meta['iteration'])
        except FileNotFoundError:
            return {}, 0
        except (ValueError, TypeError, KeyError, OSError):
            runner.logger.warning(f'{file} is damaged: it is written anew with the next validation')
            return {}, 0
        if iteration > runner.iter:  # a later state of the run, which this one does not go on from
            file.unlink(missing_ok=True)
            return {}, 0
        return (metrics if iteration == runner.iter else {}), iteration

    def _write(self, runner: Runner, **meta: Any) -> None:
        """Writes the file on the first rank; ``meta`` replaces facts about the run."""
        if not is_main_process():
            return
        wrapper = runner.optim_wrapper
        # Inside training the epoch is counted before its validation.
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
