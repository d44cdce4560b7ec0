"""Training: one run, or the single-task runs that Delta p is measured against."""

import copy
from collections.abc import Mapping
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import barrier, is_main_process
from mmengine.runner import Runner, find_latest_checkpoint

from mmrepmtl.apis.config import metric_settings, prepare_launch, test_data, watch_ranks
from mmrepmtl.apis.evaluate import evaluate, metrics_of
from mmrepmtl.apis.run_hooks import register_run_hooks
from mmrepmtl.apis.splits import SPLITS, check_split, keep_metrics, listed_metrics, loader_of, own_datasets
from mmrepmtl.engine.checkpoint import load_checkpoint
from mmrepmtl.engine.hooks.metrics_file import NO_SELECTION
from mmrepmtl.engine.hooks.selection import BEST_CHECKPOINT
from mmrepmtl.evaluation import save_results
from mmrepmtl.utils.config_types import name_types


def train(cfg: Config, trust_checkpoint: bool = False) -> dict[str, float]:
    """Runs a training and returns the metrics of its last validation, the same on every rank.

    Args:
        cfg: As :func:`mmrepmtl.apis.load_config` makes it.
        trust_checkpoint: Load checkpoints that hold more than data.

    Raises:
        ValueError: If a checkpoint to start from is refused or damaged, or the config lacks a part.
    """
    check_training(cfg)
    name_types(cfg)
    prepare_launch(cfg)
    start = cfg.get('load_from')
    if cfg.get('resume') and start is None:
        start = find_latest_checkpoint(cfg.work_dir)
    if start is not None and not trust_checkpoint:
        # mmengine would fall back to unpickling whatever the file holds.
        load_checkpoint(start)
    runner = Runner.from_cfg(cfg)
    watch_ranks(cfg)
    register_run_hooks(runner)
    runner.train()
    barrier()  # the first rank writes the files that all of them may read next
    return metrics_of(runner)


def train_single_tasks(cfg: Config, trust_checkpoint: bool = False) -> dict[str, float]:
    """Trains each task alone, one after the other, and writes their *test* metrics to ``stl.json`` in the work dir.

    The network, the data and the schedule are those of the multi-task run, with one head. A task's run lies in the
    folder of its name; its last checkpoint is evaluated, or what ``cfg.selection`` says (:func:`apply_selection`), so a
    task that was finished before a resume counts too.

    Returns:
        The metrics of all tasks on ``cfg.test_dataloader``, the baseline of Delta p.
    """
    check_split(cfg, 'test', '--method stl, which measures each task on the test set')
    heads = (cfg.get('model') or {}).get('heads')
    if not isinstance(heads, Mapping) or not heads:
        raise ValueError(
            '--method stl: the model of this config has no dict of heads, so it has no tasks to train alone'
        )
    metrics: dict[str, float] = {}
    selection = cfg.get('selection', 'last')
    # All configs first: what is wrong with the last task's must not be found after hours.
    for alone in [single_task_config(cfg, task) for task in heads]:
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
        if not alone.get(key):
            continue
        listed = listed_metrics(alone[key])
        metrics = [metric for metric in listed if task in (metric.get('task'), metric.get('prefix'))]
        if not metrics:
            raise ValueError(f'--method stl: no metric of {key} has task={task!r}; add one')
        alone[key] = keep_metrics(alone[key], metrics)
    for split in SPLITS:
        for dataset in own_datasets((loader_of(alone, split) or {}).get('dataset')):
            dataset['targets'] = [head.get('target') or task]
    alone.work_dir = str(Path(cfg.work_dir, task))
    alone.experiment_name = f'{Path(cfg.work_dir).name}_{task}'
    return alone


def check_training(cfg: Config) -> None:
    """Says which parts of a training a config lacks, before anything is built.

    Raises:
        ValueError: Naming the keys.
    """
    missing = [key for key in ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper') if not cfg.get(key)]
    if missing:
        raise ValueError(f'training: the config has no {" and no ".join(missing)}; set what is missing')
    for split in ('val', 'test'):
        # mmengine takes all three or none.
        if any(cfg.get(f'{split}_{part}') is not None for part in ('dataloader', 'cfg', 'evaluator')):
            parts = f'{split}_dataloader, {split}_cfg and {split}_evaluator go together, or all are None'
            check_split(cfg, split, f'training ({parts})')
