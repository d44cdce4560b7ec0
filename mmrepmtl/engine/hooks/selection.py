"""Selects the checkpoint, or the mean over the last evaluations, whose metrics a run reports."""

import copy
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.model import is_model_wrapper
from mmengine.runner import IterBasedTrainLoop, Runner
from mmengine.runner.checkpoint import save_checkpoint, weights_to_cpu
from torch import Tensor, nn

from mmrepmtl.engine.aliases import State
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
"""Key of a checkpoint: the content of that file, as JSON text."""

#: A validation: ``epoch`` (None in a loop without epochs), ``iter``, ``metrics``, and for 'best-val' its ``score``.
Validation: TypeAlias = dict[str, Any]


@HOOKS.register_module()
class SelectionHook(MetricsFileHook):
    """Selects a checkpoint, or averages the last evaluations, and says so in the log and in ``metrics.json``.

    * 'best-val': the validation with the highest score. The weights that it evaluated go to ``best.pth`` with the
      metrics and the rule of the selection; they may be an average that another hook swaps in for validations. The
      score is ``metric``, negated if lower is better. Without ``metric`` it is the mean over tasks of the mean relative
      improvement over the run's first validation (:func:`delta_p_task`), as in LibMTL.
    * 'last10': the mean of each metric over the evaluations of the last 10 epochs; nothing is selected.

    All validations are in ``selection.json``, which a resumed run reads. The checkpoints hold them too, in case that
    file is lost. Damaged files end no run: the log says what is lost, and the selection goes on with the rest.

    Args:
        selection: 'best-val' or 'last10'.
        metric: ``'task/metric'`` for 'best-val'.
        on_test_set: Whether validations are on the test set, for the log.

    Raises:
        ValueError: For another ``selection`` or an unknown ``metric``. Before training: for 'last10' in a loop without
            epochs. At a validation: if it lacks ``metric`` or has no score. At the end: if no validation had a score,
            or one of the last 10 epochs was not evaluated.
    """

    def __init__(self, selection: str, metric: str | None = None, on_test_set: bool = False) -> None:
        super().__init__()
        if selection not in SELECTIONS[1:]:
            raise ValueError(f"SelectionHook: selection={selection!r}, expected 'best-val' or 'last10'")
        if metric is not None:
            higher_is_better(metric)
        self.kind, self.metric = selection, metric
        self._data = 'the test set' if on_test_set else 'the validation data'
        self._history: list[Validation] = []
        self._best: Validation | None = None
        self._evaluated: dict[str, Tensor] | None = None
        self._in_checkpoint: list[Validation] = []

    @property
    def rule(self) -> str:
        """The rule of the selection, in words."""
        if self.kind == 'last10':
            return f'last10: mean over the evaluations of the last {LAST} epochs on {self._data}, no selection'
        by = self.metric or 'mean relative improvement over the first validation (each task alike)'
        return f'best-val: best validation on {self._data} by {by}'

    def before_save_checkpoint(self, runner: Runner, checkpoint: State) -> None:
        """Adds the validations to the checkpoint, in case their file is lost."""
        checkpoint[HISTORY_KEY] = json.dumps(self._history)

    def after_load_checkpoint(self, runner: Runner, checkpoint: State) -> None:
        """Keeps the validations that the checkpoint holds."""
        try:
            self._in_checkpoint = _checked_history(json.loads(checkpoint.get(HISTORY_KEY, '[]')))
        except (ValueError, KeyError, TypeError, AttributeError):
            self._in_checkpoint = []

    def before_train(self, runner: Runner) -> None:
        """Restores the validations before a resume."""
        if self.kind == 'last10' and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise ValueError(
                "SelectionHook: selection='last10' is a mean over the last 10 epochs, and the train loop counts "
                "iterations; use 'best-val', or an EpochBasedTrainLoop"
            )
        self._history, self._best = [], None
        if runner.iter > 0:
            # Later validations belong to a later state of the run, and must not come back in the next resume.
            nothing: tuple[list[Validation], Validation | None] = ([], None)
            found = [self._earlier_validations(runner) if is_main_process() else nothing]
            broadcast_object_list(found)
            self._history, self._best = found[0]
            if is_main_process():
                self._write_history(runner)
        elif is_main_process():
            # The file of an older run in the same folder.
            Path(runner.work_dir, HISTORY_FILE).unlink(missing_ok=True)
        runner.logger.info(f'selection: {self.rule}')

    def has_validated(self, runner: Runner) -> bool:
        """Whether the history has the validation of this iteration."""
        return runner.iter in [entry['iter'] for entry in self._history]

    def before_val_epoch(self, runner: Runner) -> None:
        """Copies the weights in the first forward pass: by then every hook has swapped in the weights to evaluate."""
        self._evaluated = None
        if self.kind != 'best-val' or runner.iter == 0 or not is_main_process():
            return
        model = _inner(runner.model)

        def copy_weights(*_: Any) -> None:
            handle.remove()
            self._evaluated = copy.deepcopy(weights_to_cpu(model.state_dict()))

        handle = model.register_forward_pre_hook(copy_weights)

    def _earlier_validations(self, runner: Runner) -> tuple[list[Validation], Validation | None]:
        """Returns the validations up to here and the best one; logs what is lost, and leaves out what is repeated."""
        history, best, damaged = _read_state(Path(runner.work_dir), runner.logger)
        if not history and self._in_checkpoint:
            history = self._in_checkpoint
            runner.logger.warning(
                f'selection: the validations so far are taken from the checkpoint, not {HISTORY_FILE}'
            )
        # Later validations are repeated; the best weights so far stay those of this run.
        history = [entry for entry in history if entry['iter'] <= runner.iter]
        if self.kind != 'best-val':
            return history, None
        if damaged and not history and best is not None and runner.iter >= best['iter']:
            # Scores are relative to the first validation, which is lost: the best one replaces it.
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
            # The validation of this iteration is repeated: the run has its weights.
            history = [entry for entry in history if entry['iter'] < runner.iter]
        return history, best if history else None

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, float] | None = None) -> None:
        """Keeps the validation, and its weights if it is the best so far."""
        if runner.iter == 0:
            super().after_val_epoch(runner, metrics)
            return
        self.metrics = dict(metrics or {})
        self._compare_ranks(runner)
        entry = dict(epoch=epoch_of(runner), iter=runner.iter, metrics=self.metrics)
        # A run that was killed before the end of this validation was noted repeats it.
        self._history = [before for before in self._history if before['iter'] != runner.iter] + [entry]
        if self.kind == 'best-val':
            score = entry['score'] = self._score(self.metrics, runner.logger)
            if not math.isnan(score) and (self._best is None or score > self._best['score']):
                self._best = entry
                self._save_best(runner, entry)
        self._evaluated = None
        if is_main_process():
            self._write_history(runner)
        self._write_state(runner)

    def _write_history(self, runner: Runner) -> None:
        with whole_file(Path(runner.work_dir, HISTORY_FILE)) as file:
            file.write(json.dumps(dict(rule=self.rule, history=self._history)).encode())

    def after_train(self, runner: Runner) -> None:
        """Makes the selected metrics those of the training, and writes them."""
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

    def _write_state(self, runner: Runner) -> None:
        if self._best is not None:
            self.metrics, where = dict(self._best['metrics']), dict(epoch=self._best['epoch'], iter=self._best['iter'])
        else:
            where = dict(epoch=epoch_of(runner), iter=runner.iter)
        finished = runner.epoch >= runner.max_epochs
        state = '' if finished or self.kind == 'best-val' else ' (training not finished: the last evaluation alone)'
        self._write(runner, selection=self.rule + state, epoch=where['epoch'], iteration=where['iter'])

    def _score(self, metrics: Mapping[str, float], logger: logging.Logger) -> float:
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

    def _save_best(self, runner: Runner, entry: Validation) -> None:
        if not is_main_process():
            return
        # A validation without a batch has copied no weights.
        weights = self._evaluated or weights_to_cpu(_inner(runner.model).state_dict())
        meta = dict(entry, selection=f'{self.rule}; {_where(entry)}')
        # mmengine's backend reports a full disk as such; torch.save does not.
        save_checkpoint(dict(meta=meta, state_dict=weights), str(Path(runner.work_dir, BEST_CHECKPOINT)))


def _inner(model: nn.Module) -> nn.Module:
    return model.get_submodule('module') if is_model_wrapper(model) else model


def _where(entry: Validation) -> str:
    return f'iteration {entry["iter"]}' if entry['epoch'] is None else f'epoch {entry["epoch"]}'


def mean_metrics(evaluations: list[Mapping[str, float]]) -> dict[str, float]:
    """Returns the mean of each metric; NaN if one evaluation has NaN or lacks it."""
    keys = dict.fromkeys(key for metrics in evaluations for key in metrics)
    return {key: math.fsum(metrics.get(key, math.nan) for metrics in evaluations) / len(evaluations) for key in keys}


def _read_state(folder: Path, logger: logging.Logger) -> tuple[list[Validation], Validation | None, bool]:
    """Reads the validations so far, and the best one from ``best.pth``; also says whether the former are damaged.

    A damaged file counts as missing, which the log says.
    """
    file, weights = folder / HISTORY_FILE, folder / BEST_CHECKPOINT
    history: list[Validation] = []
    best: Validation | None = None
    damaged = False
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


def _checked_history(history: list[Validation]) -> list[Validation]:
    """Returns the validations; raises TypeError or KeyError if one has not the form of a validation."""
    for entry in history:
        numbers = [entry['epoch'] or 0, entry['iter'], *entry['metrics'].values(), entry.get('score', 0.0)]
        if not all(isinstance(number, int | float) for number in numbers):
            raise TypeError('numbers expected')
    return list(history)
