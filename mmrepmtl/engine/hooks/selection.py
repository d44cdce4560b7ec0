import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop
from mmengine.runner.checkpoint import weights_to_cpu

from mmrepmtl.engine.hooks.metrics_file import MetricsFileHook
from mmrepmtl.evaluation import delta_p_task, higher_is_better
from mmrepmtl.evaluation.metric_table import counts_in_delta_p
from mmrepmtl.registry import HOOKS
from mmrepmtl.utils.checkpoint import load_checkpoint
from mmrepmtl.utils.files import whole_file

SELECTIONS = ('last', 'best-val', 'last10')
LAST = 10
BEST_CHECKPOINT = 'best.pth'
HISTORY_FILE = 'selection.json'


@HOOKS.register_module()
class SelectionHook(MetricsFileHook):
    """Selects a checkpoint, or averages the last evaluations, and says so in the log and in ``metrics.json``.

    * 'best-val': the validation with the highest score; its weights are in ``best.pth`` with the metrics and the
      selection's name. The score is ``metric`` (negated where lower is better), or without one the mean over tasks of
      the mean relative improvement over the run's first validation (:func:`delta_p_task`), LibMTL's rule.
    * 'last10': the mean of each metric over the evaluations of the last 10 epochs; nothing is selected.

    All validations are in ``selection.json``, from which a resumed run goes on.

    Args:
        selection: 'best-val' or 'last10'.
        metric: ``'task/metric'`` for 'best-val'.
        on_test_set: Whether validations are on the test set, for the log.

    Raises:
        ValueError: At a validation, if ``metric`` is not among its metrics or the score cannot be defined; at the end,
            if no validation had a score or one of the last 10 epochs was not evaluated.
    """

    def __init__(self, selection: str, metric: str | None = None, on_test_set: bool = False) -> None:
        super().__init__()
        if selection not in SELECTIONS[1:]:
            raise ValueError(f"SelectionHook: selection={selection!r}, expected 'best-val' or 'last10'")
        if metric is not None:
            higher_is_better(metric)
        self.kind, self.metric = selection, metric
        self._data = 'the test set' if on_test_set else 'the validation data'
        self._history: list[dict] = []
        self._best: dict | None = None

    @property
    def rule(self) -> str:
        """What is selected, by what, on which data."""
        if self.kind == 'last10':
            return f'last10: mean over the evaluations of the last {LAST} epochs on {self._data}, no selection'
        by = self.metric or 'mean relative improvement over the first validation (each task alike)'
        return f'best-val: best validation on {self._data} by {by}'

    def before_train(self, runner) -> None:
        """Takes up the validations before a resume, and the one that it may have missed."""
        self._history, self._best = [], None
        if runner.iter > 0:
            found = [_read_state(Path(runner.work_dir)) if is_main_process() else None]
            broadcast_object_list(found)
            history, best = found[0]
            # Later ones are done again; the best weights so far are of this run, whatever follows.
            self._history = [entry for entry in history if entry['iter'] <= runner.iter]
            self._best = best if self._history else None
        elif is_main_process():
            # An older run's in the same folder.
            Path(runner.work_dir, HISTORY_FILE).unlink(missing_ok=True)
        runner.logger.info(f'selection: {self.rule}')
        if self._is_due(runner) and runner.iter not in [entry['iter'] for entry in self._history]:
            runner.val_loop.run()

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        """Keeps the validation, and its weights if it is the best so far."""
        if runner.iter == 0:
            super().after_val_epoch(runner, metrics)
            return
        self.metrics = dict(metrics or {})
        self._compare_ranks(runner)
        entry = dict(epoch=runner.epoch, iter=runner.iter, metrics=self.metrics)
        self._history.append(entry)
        if self.kind == 'best-val':
            score = entry['score'] = self._score(self.metrics, runner.logger)
            if not math.isnan(score) and (self._best is None or score > self._best['score']):
                self._best = entry
                self._save_best(runner)
        if is_main_process():
            text = json.dumps(dict(rule=self.rule, history=self._history))
            with whole_file(Path(runner.work_dir, HISTORY_FILE)) as file:
                file.write(text.encode())
        self._write_state(runner)

    def after_train(self, runner) -> None:
        """Gives the selected metrics to who asked for the training, and writes them."""
        if self.kind == 'best-val':
            if self._best is None:
                raise ValueError(f'selection: no validation had a score ({self.rule})')
            self.metrics = dict(self._best['metrics'])
            runner.logger.info(f'selection: {self.rule}; it is epoch {self._best["epoch"]}, in {BEST_CHECKPOINT}')
        else:
            wanted = range(runner.max_epochs - LAST + 1, runner.max_epochs + 1)
            by_epoch = {entry['epoch']: entry['metrics'] for entry in self._history}
            missing = [epoch for epoch in wanted if epoch not in by_epoch]
            if missing:
                raise ValueError(f'selection: epochs {missing} of the last {LAST} were not evaluated ({HISTORY_FILE})')
            self.metrics = mean_metrics([by_epoch[epoch] for epoch in wanted])
            runner.logger.info(f'selection: {self.rule}; epochs {wanted[0]} to {wanted[-1]}')
        self._write_state(runner)

    def _write_state(self, runner) -> None:
        if self._best is not None:
            self.metrics, where = dict(self._best['metrics']), dict(epoch=self._best['epoch'], iter=self._best['iter'])
        else:
            where = dict(epoch=runner.epoch, iter=runner.iter)
        finished = runner.epoch >= runner.max_epochs
        state = '' if finished or self.kind == 'best-val' else ' (training not finished: the last evaluation alone)'
        self._write(runner, selection=self.rule + state, epoch=where['epoch'], iteration=where['iter'])

    def _score(self, metrics: Mapping[str, float], logger) -> float:
        if self.metric is not None:
            if self.metric not in metrics:
                raise ValueError(f'selection: there is no metric {self.metric!r}, only {", ".join(metrics) or "none"}')
            return metrics[self.metric] if higher_is_better(self.metric) else -metrics[self.metric]
        first = self._history[0]['metrics']
        keys = [key for key in first if counts_in_delta_p(key) and math.isfinite(first[key]) and first[key] > 0]
        if len(self._history) == 1:
            left_out = sorted(key for key in first if counts_in_delta_p(key) and key not in keys)
            if left_out:
                logger.warning(f'selection: {left_out} are not positive in the first validation and do not count')
        if not keys:
            raise ValueError(
                'selection: no metric of the first validation is positive, so there is no relative improvement over '
                f'it ({first}); give a metric with --selection-metric'
            )
        if not all(math.isfinite(metrics.get(key, math.nan)) for key in keys):
            return math.nan
        return delta_p_task(metrics, first, keys=keys)

    def _is_due(self, runner) -> bool:
        """Whether the epoch that a resumed run starts after was to be validated."""
        loop = runner.train_loop
        if runner.iter == 0 or not isinstance(loop, EpochBasedTrainLoop) or runner.val_loop is None:
            return False
        loop._decide_current_val_interval()
        last = runner.epoch == runner.max_epochs
        return runner.epoch >= loop.val_begin and (runner.epoch % loop.val_interval == 0 or last)

    def _save_best(self, runner) -> None:
        if not is_main_process():
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        meta = dict(self._best, selection=f'{self.rule}; epoch {self._best["epoch"]}')
        with whole_file(Path(runner.work_dir, BEST_CHECKPOINT)) as file:
            torch.save(dict(meta=meta, state_dict=weights_to_cpu(model.state_dict())), file)


def mean_metrics(evaluations: list[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric; NaN where one evaluation has NaN or lacks it."""
    keys = dict.fromkeys(key for metrics in evaluations for key in metrics)
    return {key: math.fsum(metrics.get(key, math.nan) for metrics in evaluations) / len(evaluations) for key in keys}


def _read_state(folder: Path) -> tuple[list[dict], dict | None]:
    """The validations so far, and the best one as the checkpoint beside its weights says."""
    file, best = folder / HISTORY_FILE, folder / BEST_CHECKPOINT
    history = json.loads(file.read_text(encoding='utf-8'))['history'] if file.is_file() else []
    meta = load_checkpoint(best)['meta'] if best.is_file() and history else None
    return history, meta and {key: meta[key] for key in ('epoch', 'iter', 'metrics', 'score')}
