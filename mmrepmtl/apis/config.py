"""From a config file and the command line to the config of one run."""

import gc
import inspect
import json
import os
import sys
from collections.abc import Mapping, MutableMapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config

from mmrepmtl.apis.config_file import configs_folder, find_config, read_config
from mmrepmtl.apis.splits import SPLITS, dataset_of, loader_of, metrics_of_split, own_datasets
from mmrepmtl.apis.start import NEW_RUN_FROM, is_first
from mmrepmtl.engine.last_checkpoint import run_checkpoints
from mmrepmtl.engine.rank_watch import start_watch, stop_watch
from mmrepmtl.registry import AGGREGATORS, WEIGHTINGS
from mmrepmtl.utils.config_types import find_type, plain_data, type_name

METHOD_KEYS = ('loss_transform', 'weighting', 'aggregator', 'regularizers')


def _method_folder(config_file: Path) -> Path:
    """``_base_/methods`` above the config file, else that of this package."""
    for folder in config_file.resolve().parents:
        if (folder / '_base_' / 'methods').is_dir():
            return folder / '_base_' / 'methods'
    return configs_folder() / '_base_' / 'methods'


def available_methods(config_file: str | Path | None = None) -> list[str]:
    """Names that ``--method`` takes for a config; None: the methods of this package."""
    folder = _method_folder(configs_folder() / 'any' if config_file is None else find_config(config_file))
    return sorted(path.stem for path in folder.glob('*.py'))


def describe_methods(config_file: str | Path | None = None) -> dict[str, str]:
    """{name: the first line of its overlay, which says what it is} of :func:`available_methods`."""
    folder = _method_folder(configs_folder() / 'any' if config_file is None else find_config(config_file))
    lines = {}
    for path in sorted(folder.glob('*.py')):
        text = path.read_text(encoding='utf-8').splitlines()
        lines[path.stem] = text[0].lstrip('# ').strip() if text and text[0].startswith('#') else ''
    return lines


def load_config(
    path: str | Path,
    method: str | None = None,
    work_dir: str | None = None,
    resume: bool | str = False,
    precision: str | None = None,
    seed: int | None = None,
    data_root: str | None = None,
    cfg_options: Mapping[str, Any] | None = None,
    launcher: str = 'none',
    force_resume: bool = False,
    regularizer: str | None = None,
    encoder_checkpointing: bool = False,
    compile_encoder: str | None = None,
) -> Config:
    """Loads a config and applies the command line to it.

    Args:
        path: The config file, or the name of a config of this package, see :func:`find_config`.
        method: Overlay of ``configs/_base_/methods/METHOD.py``: replaces what the config says of the method.
        work_dir: The run's folder; None: ``work_dirs/CONFIG`` (with the names of method and regulariser). A run that is
            resumed by a config among its checkpoints stays in that folder.
        resume: True: from the last checkpoint in the work directory; a path: from that.
        precision: 'fp32', 'bf16' or 'fp16'.
        seed: The seed of the run, and of the random numbers that its method draws.
        data_root: Replaces the data root of every data set that has one.
        cfg_options: Dotted key -> value, applied last.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'.
        force_resume: Resume although the method or the number of processes differs.
        regularizer: Overlay whose regularisers are added to those of the method, for example 'rep-mtl'.
        encoder_checkpointing: Recompute the encoder's activations in the backward pass.
        compile_encoder: Backend of torch.compile, for the encoder.

    Raises:
        FileNotFoundError: If there is no such config or checkpoint.
        ValueError: For an unknown method; lists those there are. For options of an encoder, an optim wrapper or a data
            set where there is none.
    """
    path = find_config(path)
    cfg = read_config(path)
    cfg.setdefault('default_scope', 'mmrepmtl')
    cfg.launcher = launcher
    _change_optim_wrapper(cfg, path, method, regularizer, precision)
    if encoder_checkpointing or compile_encoder:
        _set_encoder_options(cfg, encoder_checkpointing, compile_encoder)
    if seed is not None:
        cfg.merge_from_dict({'randomness.seed': seed})
    if data_root is not None:
        _set_data_root(cfg, data_root)
    if cfg_options:
        cfg.merge_from_dict(dict(cfg_options))
    _seed_methods(cfg)
    name = '_'.join(part for part in (path.stem, method, regularizer and f'with-{regularizer}') if part)
    said = work_dir or (cfg_options or {}).get('work_dir')
    if resume and not said and cfg.get('work_dir'):
        _stay_with_config(cfg, path)
    cfg.work_dir = work_dir or cfg.get('work_dir') or os.path.join('work_dirs', name)
    if resume:
        _set_resume(cfg, resume)
    if force_resume:
        cfg.optim_wrapper.force_resume = True
    return cfg


def _change_optim_wrapper(
    cfg: Config, path: Path, method: str | None, regularizer: str | None, precision: str | None
) -> None:
    for option, value in (('--method', method), ('--regularizer', regularizer), ('--precision', precision)):
        if value is not None and not cfg.get('optim_wrapper'):
            raise ValueError(f'{path}: {option} changes optim_wrapper, but the config has none')
    if method is not None:
        _overlay(cfg, path, method)
    if regularizer is not None:
        _add_regularizers(cfg, path, regularizer)
    if precision is not None:
        cfg.optim_wrapper.precision = precision


def _set_resume(cfg: Config, resume: bool | str) -> None:
    """Has the run go on from the checkpoint of that name, or from its last one (True)."""
    if cfg.get('load_from') and not cfg.get('resume'):
        cfg[NEW_RUN_FROM] = cfg.load_from
    cfg.resume = True
    cfg.load_from = resume if isinstance(resume, str) else None
    if isinstance(resume, str) and not Path(resume).is_file():
        raise FileNotFoundError(f'--resume: there is no checkpoint {resume}')


def _stay_with_config(cfg: Config, path: Path) -> None:
    """Has a run that was copied or moved with its own config go on in its folder: the config names the old one."""
    folder, there = path.resolve().parent, cfg.work_dir
    if os.path.realpath(there) == str(folder):
        return
    if run_checkpoints(Config(dict(cfg.to_dict(), work_dir=str(folder)))):
        cfg.work_dir = str(folder)
        if is_first(cfg):
            print(
                f'--resume: {path} says work_dir={there}, but lies in a folder with checkpoints: the run was copied or '
                f'moved, so it goes on in {folder}; give --work-dir to choose another',
                file=sys.stderr,
            )


def _set_data_root(cfg: Config, data_root: str) -> None:
    for split in SPLITS:
        for dataset in own_datasets((loader_of(cfg, split) or {}).get('dataset')):
            if 'data_root' in dataset:
                dataset['data_root'] = data_root


def _overlay(cfg: Config, path: Path, method: str) -> None:
    known = available_methods(path)
    if method not in known:
        raise ValueError(f'--method: {method!r} is unknown; there are {", ".join(known)}')
    overlay = _read_overlay(path, method)
    counts, batches = cfg.optim_wrapper.get('accumulative_counts', 1), _num_batches(cfg)
    if counts % batches:
        raise ValueError(
            f'{path}: optim_wrapper.accumulative_counts is {counts}, and the aggregator of this config needs '
            f'a multiple of {batches}'
        )
    for key in METHOD_KEYS:
        # Replaced, not merged: nothing of the config's own method may remain.
        cfg.optim_wrapper[key] = overlay.optim_wrapper.get(key)
    if _num_batches(cfg) != batches:  # each of the batches of a step is as large as before
        cfg.optim_wrapper.accumulative_counts = counts // batches * _num_batches(cfg)
    cfg.optim_wrapper.type = overlay.optim_wrapper.type
    cfg.single_task = overlay.get('single_task', False)


def _num_batches(cfg: Config) -> int:
    """How many independent batches a step of the config's aggregator takes."""
    aggregator = cfg.optim_wrapper.get('aggregator')
    return getattr(find_type(aggregator['type'], AGGREGATORS) if aggregator else None, 'num_batches', 1)


def _set_encoder_options(cfg: Config, checkpointing: bool, backend: str | None) -> None:
    encoder = (cfg.get('model') or {}).get('encoder')
    if not isinstance(encoder, MutableMapping):
        raise ValueError(
            '--encoder-checkpointing and --compile-encoder set model.encoder.grad_checkpointing and '
            'model.encoder.compile, but the model of this config has no encoder'
        )
    if checkpointing:
        encoder['grad_checkpointing'] = True
    if backend:
        encoder['compile'] = dict(backend=backend)


def _seed_methods(cfg: Config) -> None:
    """Gives methods that draw random numbers the run's seed: repetitions with other seeds must differ in these too."""
    seed = (cfg.get('randomness') or {}).get('seed')
    for key, registry in (('weighting', WEIGHTINGS), ('aggregator', AGGREGATORS)):
        method = (cfg.get('optim_wrapper') or {}).get(key)
        if not method:
            continue
        kind = find_type(method['type'], registry)
        if seed is not None and kind is not None and 'seed' in inspect.signature(kind).parameters:
            method.setdefault('seed', seed)


def _add_regularizers(cfg: Config, path: Path, name: str) -> None:
    known = [m for m in available_methods(path) if _read_overlay(path, m).optim_wrapper.get('regularizers')]
    if name not in known:
        raise ValueError(f'--regularizer: {name!r} is unknown; there are {", ".join(known)}')
    if cfg.get('single_task'):
        raise ValueError('--regularizer: a task that is trained alone has no other task to be regularised against')
    added = _read_overlay(path, name).optim_wrapper.regularizers
    present = {type_name(regularizer['type']) for regularizer in cfg.optim_wrapper.get('regularizers') or []}
    twice = [name for name in (type_name(regularizer['type']) for regularizer in added) if name in present]
    if twice:
        raise ValueError(f'--regularizer: the method has {twice[0]} already; leave out one of the two')
    cfg.optim_wrapper.regularizers = [*(cfg.optim_wrapper.get('regularizers') or []), *added]


def _read_overlay(path: Path, name: str) -> Config:
    return read_config(_method_folder(path) / f'{name}.py')


def test_data(cfg: Config) -> str:
    """Describes the data that the test metrics are computed on, as text: two results are comparable if it is equal.

    The place of the files, the targets that a single-task run loads and the names of classes make no difference.

    Raises:
        ValueError: If the config has no test data.
    """
    return dataset_text(dataset_of(cfg, 'test', 'test data'))


def dataset_text(dataset: Mapping[str, Any]) -> str:
    """A data set's config as text, without what does not change its samples; see :func:`test_data`."""
    dataset = {key: value for key, value in plain_data(dataset).items() if key not in ('data_root', 'targets')}
    return json.dumps(dataset, sort_keys=True)


def metric_settings(cfg: Config) -> dict[str, str]:
    """How the test metrics are computed, as text by task: what is set there besides names, ``reduction`` for one."""
    names = ('task', 'target', 'prefix', 'report', 'num_classes')
    metrics = [plain_data(metric) for metric in metrics_of_split(cfg, 'test', 'metric settings')]
    settings = {metric.get('prefix') or metric.get('task') or metric['type']: metric for metric in metrics}
    return {
        task: json.dumps({key: value for key, value in metric.items() if key not in names}, sort_keys=True)
        for task, metric in settings.items()
    }


def check_comparable(cfg: Config, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses results files of another test set or with other settings of the metrics.

    Args:
        cfg: The config whose test set and metrics count.
        results: {file: its meta data}; a file without ``test_data`` or ``metric_settings`` (made elsewhere) is taken as
            it is.

    Raises:
        ValueError: Naming the file and what differs.
    """
    own = metric_settings(cfg)
    for file, meta in results.items():
        if meta.get('test_data', test_data(cfg)) != test_data(cfg):
            raise ValueError(
                f'{file} was measured on another test set: {meta["test_data"]} there, {test_data(cfg)} here; Delta p '
                'compares results of one test set only'
            )
        for task, there in (meta.get('metric_settings') or {}).items():
            if own.get(task, there) != there:
                raise ValueError(
                    f'{file} was measured with other settings of the metric of {task!r}: {there} there, {own[task]} '
                    'here; Delta p compares metrics of one definition only'
                )


#: How long a rank may wait for the others if ``env_cfg.dist_cfg.timeout`` is not set (s).
RANK_TIMEOUT = 600.0
#: gloo's own collectives wait this much longer: the watch of the ranks then speaks first, and names the missing one.
_AFTER_WATCH = 30.0


def rank_timeout(cfg: Config) -> float:
    """How long a rank may wait for the others, in seconds: ``env_cfg.dist_cfg.timeout``.

    Raises:
        ValueError: If it is no number above 0.
    """
    value = ((cfg.get('env_cfg') or {}).get('dist_cfg') or {}).get('timeout')
    if value is None:
        return RANK_TIMEOUT
    # Beyond a hundred years the clocks of the backends overflow.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 3.2e9:
        raise ValueError(f'env_cfg.dist_cfg.timeout must be a number of seconds above 0, got {value!r}')
    return float(value)


def prepare_launch(cfg: Config) -> None:
    """Prepares a distributed start: the bound of waiting, and gloo without device ids where there is no accelerator.

    Raises:
        ValueError: If ``env_cfg.dist_cfg.timeout`` is no number above 0, or the launcher cannot be used.
    """
    timeout = rank_timeout(cfg)
    if cfg.launcher == 'none':
        return
    if torch.cuda.is_available():  # mmengine starts the group; watch_ranks the watch, once there is one
        cfg.merge_from_dict({'env_cfg.dist_cfg.timeout': timeout})
        return
    if not dist.is_initialized():
        if cfg.launcher != 'pytorch':
            raise ValueError(
                f'launcher={cfg.launcher!r} without a GPU is not supported; use torchrun (--launcher pytorch), '
                'which starts gloo processes'
            )
        missing = [name for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT') if name not in os.environ]
        if missing:
            raise ValueError(
                f'--launcher pytorch: the environment lacks {", ".join(missing)}; start through '
                'tools/dist_train.sh CONFIG PROCESSES, or torchrun'
            )
        dist.init_process_group('gloo', timeout=timedelta(seconds=timeout + _AFTER_WATCH))
    start_watch(timeout)
    wrapper = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    cfg.model_wrapper_cfg = wrapper | dict(cfg.get('model_wrapper_cfg') or {})
    cfg.model_wrapper_cfg.device_ids = None


def watch_ranks(cfg: Config) -> None:
    """Starts the watch of the ranks, where the process group exists and none is at work."""
    # NCCL ends a process at the very bound, without a name; the watch speaks a little before.
    start_watch(rank_timeout(cfg) * (0.95 if torch.cuda.is_available() else 1))


def finish_launch() -> None:
    """Ends the process group of a distributed run, as the last thing that every rank does.

    Left to the interpreter's exit, gloo's threads may outlive what they use: the process then aborts after all is done,
    and the launcher reports a failed run.
    """
    stop_watch()
    if dist.is_available() and dist.is_initialized():
        # A finished Runner refers to itself, and its DistributedDataParallel to the group, whose threads go on.
        gc.collect()
        dist.destroy_process_group()
