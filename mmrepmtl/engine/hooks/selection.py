import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.model import is_model_wrapper
from mmengine.runner import IterBasedTrainLoop
from mmengine.runner.checkpoint import save_checkpoint, weights_to_cpu
from torch import Tensor, nn

from mmrepmtl.engine.hooks.metrics_file import MetricsFileHook, epoch_of
from mmrepmtl.evaluation import delta_p_task, higher_is_better
from mmrepmtl.evaluation.metric_table import counts_in_delta_p
from mmrepmtl.registry import HOOKS
from mmrepmtl.utils.checkpoint import load_checkpoint
from mmrepmtl.utils.files import whole_file

SELECTIONS = ('last', 'best-val', 'last10')
LAST = 10
BEST_CHECKPOINT = 'best.pth'
HISTORY_FILE = 'selection.json'
HISTORY_KEY = 'selection_history'
"""Of a checkpoint: the same as JSON text."""


@HOOKS.register_module()
class SelectionHook(MetricsFileHook):
    """Selects a checkpoint, or averages the last evaluations, and says so in the log and in ``metrics.json``.

    * 'best-val': the validation with the highest score; the weights that it evaluated (an average, say, that another
      hook swaps in for the time of a validation) are in ``best.pth`` with the metrics and the selection's name. The
      score is ``metric`` (negated where lower is better), or without one the mean over tasks of the mean relative
      improvement over the run's first validation (:func:`delta_p_task`), LibMTL's rule.
    * 'last10': the mean of each metric over the evaluations of the last 10 epochs; nothing is selected.

    All validations are in ``selection.json``, from which a resumed run goes on, and in the checkpoints, if that file is
    lost. Damaged files end no run: what is lost with them is said, and the selection goes on with the rest.

    Args:
        selection: 'best-val' or 'last10'.
        metric: ``'task/metric'`` for 'best-val'.
        on_test_set: Whether validations are on the test set, for the log.

    Raises:
        ValueError: Before training, for 'last10' in a loop without epochs; at a validation, if ``metric`` is not among
            its metrics or the score cannot be defined; at the end, if no validation had a score or one of the last 10
            epochs was not evaluated.
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
        self._evaluated: dict[str, Tensor] | None = None
        self._kept: list[dict] = []

    @property
    def rule(self) -> str:
        """What is selected, by what, on which data."""
        if self.kind == 'last10':
            return f'last10: mean over the evaluations of the last {LAST} epochs on {self._data}, no selection'
        by = self.metric or 'mean relative improvement over the first validation (each task alike)'
        return f'best-val: best validation on {self._data} by {by}'

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Keeps the validations in the checkpoint too, in case that their file is lost."""
        checkpoint[HISTORY_KEY] = json.dumps(self._history)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Remembers the validations that the checkpoint holds."""
        try:
            self._kept = _checked_history(json.loads(checkpoint.get(HISTORY_KEY, '[]')))
        except (ValueError, KeyError, TypeError, AttributeError):
            self._kept = []

    def before_train(self, runner) -> None:
        """Takes up the validations before a resume."""
        if self.kind == 'last10' and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise ValueError(
                "SelectionHook: selection='last10' is a mean over the last 10 epochs, and the train loop counts "
                "iterations; use 'best-val', or an EpochBasedTrainLoop"
            )
        self._history, self._best = [], None
        if runner.iter > 0:
            # Later validations, of a run that this one does not go on with, must not come back in the next resume.
            found = [self._take_up(runner) if is_main_process() else None]
            broadcast_object_list(found)
            self._history, self._best = found[0]
            if is_main_process():
                self._write_history(runner)
        elif is_main_process():
            # An older run's in the same folder.
            Path(runner.work_dir, HISTORY_FILE).unlink(missing_ok=True)
        runner.logger.info(f'selection: {self.rule}')

    def has_validated(self, runner) -> bool:
        """Whether the history has the validation of this iteration."""
        return runner.iter in [entry['iter'] for entry in self._history]

    def before_val_epoch(self, runner) -> None:
        """Has the first forward pass copy the weights: by then every hook has swapped in what is to be evaluated."""
        self._evaluated = None
        if self.kind != 'best-val' or runner.iter == 0 or not is_main_process():
            return
        model = _inner(runner.model)

        def copy_weights(*_) -> None:
            handle.remove()
            self._evaluated = copy.deepcopy(weights_to_cpu(model.state_dict()))

        handle = model.register_forward_pre_hook(copy_weights)

    def _take_up(self, runner) -> tuple[list[dict], dict | None]:
        """The validations up to here and the best one; what is lost is said, and what can be done again is."""
        history, best, damaged = _read_state(Path(runner.work_dir), runner.logger)
        if not history and self._kept:
            history = self._kept
            runner.logger.warning(
                f'selection: the validations so far are taken from the checkpoint, not {HISTORY_FILE}'
            )
        # Later ones are done again; the best weights so far are of this run, whatever follows.
        history = [entry for entry in history if entry['iter'] <= runner.iter]
        if self.kind != 'best-val':
            return history, None
        if damaged and not history and best is not None and runner.iter >= best['iter']:
            # The first validation is lost, which the score is relative to: the best one takes its place.
            best = best if self.metric else dict(best, score=0.0)
            runner.logger.warning(
                f'selection: the validations so far are lost, apart from the best one in {BEST_CHECKPOINT}, of '
                f'{_where(best)}: the run goes on from there'
                + ('' if self.metric else ', and scores are relative to it')
            )
            return [best], best
        if best is None and any('score' in entry for entry in history):
            runner.logger.warning(
                f'selection: the weights of the best validation so far are not in {BEST_CHECKPOINT}; the best of the '
                'validations from here on is selected'
            )
            # The weights of this one are at hand: it is done again.
            history = [entry for entry in history if entry['iter'] < runner.iter]
        return history, best if history else None

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        """Keeps the validation, and its weights if it is the best so far."""
        if runner.iter == 0:
            super().after_val_epoch(runner, metrics)
            return
        self.metrics = dict(metrics or {})
        self._compare_ranks(runner)
        entry = dict(epoch=epoch_of(runner), iter=runner.iter, metrics=self.metrics)
        # A run that is killed before it noted the end of this validation does it again.
        self._history = [before for before in self._history if before['iter'] != runner.iter] + [entry]
        if self.kind == 'best-val':
            score = entry['score'] = self._score(self.metrics, runner.logger)
            if not math.isnan(score) and (self._best is None or score > self._best['score']):
                self._best = entry
                self._save_best(runner)
        self._evaluated = None
        if is_main_process():
            self._write_history(runner)
        self._write_state(runner)

    def _write_history(self, runner) -> None:
        with whole_file(Path(runner.work_dir, HISTORY_FILE)) as file:
            file.write(json.dumps(dict(rule=self.rule, history=self._history)).encode())

    def after_train(self, runner) -> None:
        """Gives the selected metrics to who asked for the training, and writes them."""
        if self.kind == 'best-val':
            if self._best is None:
                raise ValueError(f'selection: no validation had a score ({self.rule})')
            self.metrics = dict(self._best['metrics'])
            runner.logger.info(f'selection: {self.rule}; it is {_where(self._best)}, in {BEST_CHECKPOINT}')
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
            where = dict(epoch=epoch_of(runner), iter=runner.iter)
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

    def _save_best(self, runner) -> None:
        if not is_main_process():
            return
        # Without a batch nothing was evaluated, and nothing was kept.
        weights = self._evaluated or weights_to_cpu(_inner(runner.model).state_dict())
        meta = dict(self._best, selection=f'{self.rule}; {_where(self._best)}')
        # Through mmengine's backend: a full disk is then said as one, which torch.save does not.
        save_checkpoint(dict(meta=meta, state_dict=weights), str(Path(runner.work_dir, BEST_CHECKPOINT)))


def _inner(model: nn.Module) -> nn.Module:
    return model.module if is_model_wrapper(model) else model


def _where(entry: Mapping) -> str:
    return f'iteration {entry["iter"]}' if entry['epoch'] is None else f'epoch {entry["epoch"]}'


def mean_metrics(evaluations: list[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric; NaN where one evaluation has NaN or lacks it."""
    keys = dict.fromkeys(key for metrics in evaluations for key in metrics)
    return {key: math.fsum(metrics.get(key, math.nan) for metrics in evaluations) / len(evaluations) for key in keys}


def _read_state(folder: Path, logger) -> tuple[list[dict], dict | None, bool]:
    """The validations so far, the best one as the checkpoint beside its weights says, and whether those are damaged.

    A damaged file counts as none, which the log says.
    """
    file, weights = folder / HISTORY_FILE, folder / BEST_CHECKPOINT
    history, best, damaged = [], None, False
    if file.is_file():
        try:
            history = _checked_history(json.loads(file.read_text(encoding='utf-8'))['history'])
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            damaged = True
            logger.warning(f'selection: {file} is damaged ({error!r:.100})')
    if weights.is_file():
        try:
            meta = load_checkpoint(weights)['meta']
            (best,) = _checked_history([{key: meta[key] for key in ('epoch', 'iter', 'metrics', 'score')}])
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            logger.warning(f'selection: {weights} is damaged, and its weights are lost ({error!r:.200})')
    return history, best, damaged


def _checked_history(history: list[dict]) -> list[dict]:
    """Raises TypeError or KeyError if it is none."""
    for entry in history:
        numbers = [entry['epoch'] or 0, entry['iter'], *entry['metrics'].values(), entry.get('score', 0.0)]
        if not all(isinstance(number, int | float) for number in numbers):
            raise TypeError('numbers expected')
    return list(history)
