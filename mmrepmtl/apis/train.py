"""Training: one run, or the single-task runs that Delta p is measured against."""

import copy
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.runner import Runner, find_latest_checkpoint

from mmrepmtl.apis.config import metric_settings, prepare_launch, test_data
from mmrepmtl.apis.evaluate import evaluate, metrics_of
from mmrepmtl.engine.hooks.metrics_file import NO_SELECTION
from mmrepmtl.engine.hooks.selection import BEST_CHECKPOINT
from mmrepmtl.evaluation import save_results
from mmrepmtl.utils.checkpoint import load_checkpoint, trust_checkpoints


def train(cfg: Config, trust_checkpoint: bool = False) -> dict[str, float]:
    """Runs a training and returns the metrics of its last validation, the same on every rank.

    Args:
        cfg: As :func:`mmrepmtl.apis.load_config` makes it.
        trust_checkpoint: Load checkpoints that hold more than data.

    Raises:
        ValueError: If a checkpoint to start from is refused or damaged.
    """
    prepare_launch(cfg)
    start = cfg.get('load_from')
    if cfg.get('resume') and start is None:
        start = find_latest_checkpoint(cfg.work_dir)
    with trust_checkpoints(trust_checkpoint):
        if start is not None and '://' not in str(start):
            load_checkpoint(start)  # so that a checkpoint that is none ends the run before the data is looked at
        runner = Runner.from_cfg(cfg)
        runner.train()
    return metrics_of(runner)


def train_single_tasks(cfg: Config, trust_checkpoint: bool = False) -> dict[str, float]:
    """Trains each task alone, one after the other, and writes their *test* metrics to ``stl.json`` in the work dir.

    The network, the data and the schedule are those of the multi-task run, with one head. A task's run lies in the
    folder of its name; its last checkpoint is evaluated, or what ``cfg.selection`` says (:func:`apply_selection`), so a
    task that was finished before a resume counts too.

    Returns:
        The metrics of all tasks on ``cfg.test_dataloader``, the baseline of Delta p.
    """
    metrics: dict[str, float] = {}
    selection = cfg.get('selection', 'last')
    for task in cfg.model.heads:
        alone = single_task_config(cfg, task)
        evaluations = train(copy.deepcopy(alone), trust_checkpoint)
        if selection == 'last10':  # their mean over the last epochs, on the test set
            metrics |= evaluations
            continue
        checkpoint = find_latest_checkpoint(alone.work_dir)
        if selection == 'best-val':
            checkpoint = Path(alone.work_dir, BEST_CHECKPOINT)
        alone.experiment_name += '_test'
        metrics |= evaluate(alone, checkpoint, constant=False, trust_checkpoint=trust_checkpoint)['metrics']
    if is_main_process():
        names = {'last': NO_SELECTION, 'best-val': 'best-val of each task', 'last10': 'last10'}
        meta = dict(
            method='stl', selection=names[selection], test_data=test_data(cfg), metric_settings=metric_settings(cfg)
        )
        save_results(Path(cfg.work_dir, 'stl.json'), metrics, meta | dict(seed=cfg.get('randomness', {}).get('seed')))
    return metrics


def single_task_config(cfg: Config, task: str) -> Config:
    """The config of ``task`` alone."""
    alone = copy.deepcopy(cfg)
    head = alone.model.heads[task]
    alone.model.heads = {task: head}
    for key in ('val_evaluator', 'test_evaluator'):
        alone[key] = [metric for metric in alone[key] if metric.task == task]
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        alone[key].dataset.targets = [head.get('target') or task]
    alone.work_dir = str(Path(cfg.work_dir, task))
    alone.experiment_name = f'{Path(cfg.work_dir).name}_{task}'
    return alone
