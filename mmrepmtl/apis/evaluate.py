"""Evaluation of a checkpoint: metrics, the best constant beside them, Delta p, pictures."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from mmrepmtl.apis.config import metric_settings, prepare_launch, test_data, watch_ranks
from mmrepmtl.apis.run_hooks import register_run_hooks
from mmrepmtl.apis.splits import check_split, dataset_of, listed_metrics, metrics_of_split
from mmrepmtl.engine.hooks.metrics_file import MetricsFileHook
from mmrepmtl.evaluation import (
    StreamingMetric,
    check_baseline,
    comparison_table,
    delta_m,
    delta_p_metric,
    delta_p_task,
    evaluate_constants,
    fit_constants,
    save_results,
)
from mmrepmtl.registry import DATASETS, METRICS
from mmrepmtl.utils.checkpoint import load_checkpoint, trust_checkpoints
from mmrepmtl.utils.config_types import name_types, plain_data
from mmrepmtl.utils.files import sweep_temporary, whole_file
from mmrepmtl.utils.folders import check_writable

GIVEN_CHECKPOINT = 'the checkpoint given'
"""Selection of a test whose checkpoint no hook has selected."""


def evaluate(
    cfg: Config,
    checkpoint: str | Path,
    stl: dict[str, float] | None = None,
    constant: bool = True,
    show_dir: str | Path | None = None,
    num_pictures: int = 8,
    trust_checkpoint: bool = False,
) -> dict:
    """Tests a checkpoint on ``cfg.test_dataloader`` and prints a table.

    Args:
        cfg: As :func:`mmrepmtl.apis.load_config` makes it.
        checkpoint: The file.
        stl: Metrics of the single-task baseline, for Delta p.
        constant: Show the best constant prediction of the training set beside each metric.
        show_dir: Where ``predictions.png`` goes, or None.
        num_pictures: Rows of that picture.
        trust_checkpoint: Load a checkpoint that holds more than data.

    Returns:
        ``dict(metrics, constant, delta)``, on every rank the same metrics; also written to ``test_metrics.json`` in the
        work directory, the metrics as soon as they are there.

    Raises:
        ValueError: Before the test: the config lacks a part of it, the checkpoint is refused or does not fit the model,
            the baseline is not one for these metrics, or a folder cannot be written to. After it: Delta p, the
            constants or the picture failed; the metrics are in the file all the same.
    """
    check_split(cfg, 'test', 'test')
    if constant:
        dataset_of(cfg, 'train', 'test: the best constant predictions are those of the training set (--no-constant)')
    if stl is not None:
        check_baseline(stl, _metric_keys(cfg))
    name_types(cfg)
    prepare_launch(cfg)
    cfg.load_from, cfg.resume = None, False
    if is_main_process():
        for folder in filter(None, (cfg.work_dir, show_dir)):
            check_writable(folder)
        sweep_temporary(cfg.work_dir)
    with trust_checkpoints(trust_checkpoint):
        state = load_checkpoint(checkpoint)
        runner = Runner.from_cfg(_without_incomplete_parts(cfg))
    watch_ranks(cfg)
    register_run_hooks(runner)
    model = runner.model.module if runner.distributed else runner.model
    load_weights(model, state['state_dict'], checkpoint)
    meta = state.get('meta', {})
    epoch, iteration = meta.get('epoch') or None, meta.get('iter')  # an iteration loop stays in epoch 0
    selection = meta.get('selection', GIVEN_CHECKPOINT)
    where = f'epoch {epoch}' if epoch else f'iteration {iteration}' if iteration else 'an unknown epoch'
    runner.logger.info(f'checkpoint: {checkpoint} of {where}; selection: {selection}')
    tested = runner.test()
    # A config of one's own may have no hook that keeps them.
    metrics = metrics_of(runner) or dict(tested or {})
    about = dict(
        checkpoint=str(checkpoint),
        test_data=test_data(cfg),
        metric_settings=metric_settings(cfg),
        epoch=epoch,
        iteration=iteration,
        selection=selection,
    )
    steps = _Steps(Path(cfg.work_dir, 'test_metrics.json'), metrics, about)
    delta = {} if stl is None else steps.attempt('Delta p', lambda: _deltas(metrics, stl), {})
    constants: dict[str, float] = {}
    if is_main_process():
        steps.save(**delta)
        if constant:
            constants = steps.attempt('the best constant predictions', lambda: _constants(cfg), {})
        print(f'\n{comparison_table(metrics, constants)}')
        for name, value in delta.items():
            print(f'{name}: {value:+.2f} % against the single-task baseline')
        steps.save(constant=constants, **delta)
        if show_dir is not None:
            path = Path(show_dir) / 'predictions.png'
            steps.attempt('the pictures', lambda: _draw(runner, model, path, num_pictures), None)
    steps.finish()
    return dict(metrics=metrics, constant=constants, delta=delta)


def _without_incomplete_parts(cfg: Config) -> Config:
    """A copy without a training or validation that lacks something, which mmengine refuses and a test does not need."""
    cfg = copy.deepcopy(cfg)
    for keys in (
        ('train_dataloader', 'train_cfg', 'optim_wrapper'),
        ('val_dataloader', 'val_cfg', 'val_evaluator'),
    ):
        if any(cfg.get(key) is None for key in keys):
            for key in (*keys, *(('param_scheduler',) if 'optim_wrapper' in keys else ())):
                cfg[key] = None
    return cfg


class _Steps:
    """The steps after a test. The metrics took long: each step may fail, and none may lose them.

    Args:
        file: The file for the metrics.
        metrics: The metrics.
        about: The checkpoint and settings that they were made with.
    """

    def __init__(self, file: Path, metrics: dict[str, float], about: dict[str, Any]) -> None:
        self.file, self.metrics, self.about = file, metrics, about
        self.written, self.failures = False, []

    def save(self, **more: Any) -> None:
        """Writes the metrics; on the terminal where the file cannot be written."""
        try:
            save_results(self.file, self.metrics, self.about | more)
            self.written = True
        except OSError as error:
            self.failures.append((f'writing {self.file}', error))
            print(f'metrics: {json.dumps(self.metrics)}')

    def attempt(self, what: str, do: Callable[[], Any], otherwise: Any) -> Any:
        """The outcome of a step, or ``otherwise`` if it fails, which :meth:`finish` raises."""
        try:
            return do()
        except Exception as error:
            self.failures.append((what, error))
            return otherwise

    def finish(self) -> None:
        """Raises ValueError for the steps that failed, naming all of them."""
        if self.failures:
            told = '; '.join(f'{what} failed: {error or type(error).__name__}' for what, error in self.failures)
            place = f'in {self.file}' if self.written else 'on the terminal'
            raise ValueError(f'the test is done and its metrics are {place}, but {told}') from self.failures[0][1]


def _deltas(metrics: dict[str, float], stl: dict[str, float]) -> dict[str, float]:
    return {
        'delta_p_task (ARI)': delta_p_task(metrics, stl),
        'delta_p_metric': delta_p_metric(metrics, stl),
        'delta_m': delta_m(metrics, stl),
    }


def _metric_keys(cfg: Config) -> list[str] | None:
    """The keys of the metrics that a test will give; None if a metric of another kind than ours does not tell."""
    init_default_scope(cfg.get('default_scope', 'mmrepmtl'))
    metrics = [METRICS.build(dict(spec)) for spec in listed_metrics(cfg.test_evaluator)]
    if not metrics or not all(isinstance(metric, StreamingMetric) for metric in metrics):
        return None
    return [f'{metric.prefix}/{name}' for metric in metrics for name in metric.names]


def load_weights(model, weights: dict, checkpoint: str | Path) -> None:
    """Loads all weights or says which do not fit."""
    try:
        outcome = model.load_state_dict(weights, strict=False)
        misfit = (
            ''
            if not (outcome.missing_keys or outcome.unexpected_keys)
            else (f'missing {outcome.missing_keys[:5]}, unexpected {outcome.unexpected_keys[:5]}')
        )
    except RuntimeError as error:  # torch's word for shapes that differ
        misfit = str(error)
    if misfit:
        raise ValueError(f'{checkpoint} does not fit the model of the config: {misfit}')


def metrics_of(runner: Runner) -> dict[str, float]:
    """The metrics of the runner's last validation or test."""
    hooks = [hook for hook in runner.hooks if isinstance(hook, MetricsFileHook)]
    return hooks[0].metrics if hooks else {}


def _constants(cfg: Config) -> dict[str, float]:
    """Metrics of the best constants, remembered in the work directory beside what they were computed from."""
    init_default_scope(cfg.get('default_scope', 'mmrepmtl'))
    test_set, metrics_cfg = dataset_of(cfg, 'test', 'test'), metrics_of_split(cfg, 'test', 'test')
    train_cfg = dict(dataset_of(cfg, 'train', 'test'), pipeline=test_set.get('pipeline', []), test_mode=True)
    source = json.dumps(plain_data([train_cfg, test_set, metrics_cfg]), sort_keys=True)
    file = Path(cfg.work_dir, 'constants.json')
    known = _read_constants(file)
    if known is not None and known['source'] == source:
        return known['metrics']
    print('best constant predictions of the training set (once per data set):')
    constants = fit_constants(DATASETS.build(train_cfg), metrics_cfg)
    print()
    metrics = evaluate_constants(DATASETS.build(test_set), metrics_cfg, constants)
    print()
    with whole_file(file) as opened:
        opened.write(json.dumps(dict(source=source, constants=constants, metrics=metrics), indent=1).encode())
    return metrics


def _read_constants(file: Path) -> dict | None:
    """Reads the remembered constants; None if there are none, or if they are damaged, which is printed."""
    if not file.is_file():
        return None
    try:
        known = json.loads(file.read_text(encoding='utf-8'))
        whole = isinstance(known['source'], str) and all(
            isinstance(value, int | float) for value in known['metrics'].values()
        )
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        whole = False
    if not whole:
        print(f'{file} is damaged; the constants are computed again')
    return known if whole else None


def _draw(runner: Runner, model, path: Path, count: int) -> None:
    import torch

    from mmrepmtl.visualization import write_grid

    dataset = runner.test_dataloader.dataset
    step = max(1, len(dataset) // count)
    items = [dataset[i] for i in range(0, len(dataset), step)][:count]
    model.eval()
    with torch.no_grad():
        samples = model.test_step(
            dict(inputs=[item['inputs'] for item in items], data_samples=[item['data_samples'] for item in items])
        )
    write_grid(
        path,
        [item['inputs'] for item in items],
        [sample.to('cpu') for sample in samples],
        dataset.metainfo['targets'],
        head_targets={task: head.target for task, head in model.heads.items()},
    )
    print(f'pictures: {path}')
