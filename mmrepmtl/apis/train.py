"""Training: one run, or the single-task runs that Delta p is measured against."""

import copy
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import barrier, is_main_process
from mmengine.hooks import CheckpointHook

from mmrepmtl.apis.config import metric_settings, prepare_launch, test_data, watch_ranks
from mmrepmtl.apis.config_writer import rewrite_config
from mmrepmtl.apis.evaluate import evaluate, metrics_of
from mmrepmtl.apis.run_hooks import register_run_hooks, runner_class
from mmrepmtl.apis.splits import SPLITS, check_split, keep_metrics, listed_metrics, loader_of, own_datasets
from mmrepmtl.apis.start import find_checkpoint, prepare_start
from mmrepmtl.engine.hooks.metrics_file import NO_SELECTION
from mmrepmtl.engine.hooks.resume import ResumeHook
from mmrepmtl.engine.hooks.selection import BEST_CHECKPOINT
from mmrepmtl.evaluation import save_results
from mmrepmtl.models.encoders import without_initial_weights
from mmrepmtl.registry import HOOKS
from mmrepmtl.utils.checkpoint import trust_checkpoints
from mmrepmtl.utils.config_types import find_type, name_types


def train(cfg: Config, trust_checkpoint: bool = False, quiet: bool = False) -> dict[str, float]:
    """Runs a training and returns the metrics of its last validation, the same on every rank.

    Args:
        cfg: As :func:`mmrepmtl.apis.load_config` makes it.
        trust_checkpoint: Load checkpoints that hold more than data.
        quiet: Keep mmengine's log in its file; the screen shows what runs and how far it is, warnings and errors.

    Raises:
        ValueError: If the config lacks a part, the work directory cannot be written, or a checkpoint to start from is
            refused, damaged or cannot be resumed (:func:`mmrepmtl.apis.start.prepare_start`).
        Interrupted: If a signal stopped the run, with a checkpoint to go on from; a SystemExit.
    """
    check_training(cfg)
    name_types(cfg)
    prepare_launch(cfg)
    with trust_checkpoints(trust_checkpoint):
        notes = prepare_start(cfg)
        _complete_hooks(cfg)
        # A run that goes on has all its weights from its checkpoint.
        weights = without_initial_weights() if cfg.get('resume') else nullcontext()
        try:
            with weights:
                runner = runner_class(quiet).from_cfg(cfg)
        except Exception:
            print(*notes, sep='\n', file=sys.stderr)
            raise
        if is_main_process():
            rewrite_config(runner)
        watch_ranks(cfg)
        register_run_hooks(runner, quiet)
        for hook in runner.hooks:
            if isinstance(hook, ResumeHook):
                hook.has_checkpoint_seed = True
        for note in notes:
            runner.logger.warning(note)
        runner.train()
    barrier()  # the first rank writes the files that all of them may read next
    return metrics_of(runner)


def _complete_hooks(cfg: Config) -> None:
    """Adds to a config that does not know this package what makes a run safe to kill and to resume."""
    default = cfg.get('default_hooks') or {}
    for name, hook in default.items():
        if isinstance(hook, Mapping) and find_type(hook.get('type'), HOOKS) is CheckpointHook:
            default[name].type = 'CheckpointHook'  # the class itself, of a pure Python config, passes by the registry
    hooks = [*default.values(), *(cfg.get('custom_hooks') or [])]
    kinds = [hook.get('type') if isinstance(hook, Mapping) else type(hook) for hook in hooks]
    names = {str(getattr(kind, '__name__', kind)).rpartition('.')[2] for kind in kinds}
    missing = [dict(type=name) for name in ('ResumeHook', 'InterruptHook') if name not in names]
    if missing:
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), *missing]


def train_single_tasks(cfg: Config, trust_checkpoint: bool = False, quiet: bool = False) -> dict[str, float]:
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
        evaluations = train(copy.deepcopy(alone), trust_checkpoint, quiet)
        if selection == 'last10':  # their mean over the last epochs, on the test set
            metrics |= evaluations
            continue
        checkpoint: Path | None
        if selection == 'best-val':
            checkpoint = Path(alone.work_dir, BEST_CHECKPOINT)
        else:
            checkpoint = find_checkpoint(alone, trust_checkpoint)
            if checkpoint is None:
                raise ValueError(f'{alone.work_dir}: the run wrote no checkpoint to test; set default_hooks.checkpoint')
        alone.experiment_name += '_test'
        tested = evaluate(alone, checkpoint, constant=False, trust_checkpoint=trust_checkpoint, quiet=quiet)
        metrics |= tested['metrics']
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
