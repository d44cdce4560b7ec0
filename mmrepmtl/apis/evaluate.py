"""Evaluation of a checkpoint: metrics, the best constant beside them, Delta p, pictures."""

import json
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from mmrepmtl.apis.config import metric_settings, prepare_launch, test_data
from mmrepmtl.engine.hooks.metrics_file import MetricsFileHook
from mmrepmtl.evaluation import (
    comparison_table,
    delta_m,
    delta_p_metric,
    delta_p_task,
    evaluate_constants,
    fit_constants,
    save_results,
)
from mmrepmtl.registry import DATASETS
from mmrepmtl.utils.checkpoint import load_checkpoint, trust_checkpoints


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
        work directory.

    Raises:
        ValueError: If the checkpoint is refused or does not fit the model.
    """
    prepare_launch(cfg)
    cfg.load_from, cfg.resume = None, False
    with trust_checkpoints(trust_checkpoint):
        state = load_checkpoint(checkpoint)
        runner = Runner.from_cfg(cfg)
    model = runner.model.module if runner.distributed else runner.model
    load_weights(model, state['state_dict'], checkpoint)
    meta = state.get('meta', {})
    epoch, selection = meta.get('epoch'), meta.get('selection', 'the checkpoint given')
    runner.logger.info(f'checkpoint: {checkpoint} of epoch {epoch or "unknown"}; selection: {selection}')
    runner.test()
    metrics = metrics_of(runner)
    delta = (
        {}
        if stl is None
        else {
            'delta_p_task (ARI)': delta_p_task(metrics, stl),
            'delta_p_metric': delta_p_metric(metrics, stl),
            'delta_m': delta_m(metrics, stl),
        }
    )
    constants = _constants(cfg) if constant and is_main_process() else {}
    if is_main_process():
        print(f'\n{comparison_table(metrics, constants)}')
        for name, value in delta.items():
            print(f'{name}: {value:+.2f} % against the single-task baseline')
        save_results(
            Path(cfg.work_dir, 'test_metrics.json'),
            metrics,
            dict(
                checkpoint=str(checkpoint),
                test_data=test_data(cfg),
                metric_settings=metric_settings(cfg),
                epoch=epoch,
                selection=selection,
                constant=constants,
                **delta,
            ),
        )
        if show_dir is not None:
            _draw(runner, model, Path(show_dir) / 'predictions.png', num_pictures)
    return dict(metrics=metrics, constant=constants, delta=delta)


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
    train_cfg = dict(cfg.train_dataloader.dataset, pipeline=cfg.test_dataloader.dataset.pipeline, test_mode=True)
    source = json.dumps([train_cfg, cfg.test_dataloader.dataset, cfg.test_evaluator], default=str, sort_keys=True)
    file = Path(cfg.work_dir, 'constants.json')
    if file.is_file():
        known = json.loads(file.read_text())
        if known['source'] == source:
            return known['metrics']
    print('best constant predictions of the training set (once per data set):')
    constants = fit_constants(DATASETS.build(train_cfg), cfg.test_evaluator)
    print()
    metrics = evaluate_constants(DATASETS.build(cfg.test_dataloader.dataset), cfg.test_evaluator, constants)
    print()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(dict(source=source, constants=constants, metrics=metrics), indent=1))
    return metrics


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
