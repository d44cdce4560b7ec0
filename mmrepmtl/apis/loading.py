"""A trained model from a config or a work directory."""

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import init_default_scope
from torch import nn

from mmrepmtl.apis.config_file import find_config, read_config
from mmrepmtl.apis.evaluate import load_weights
from mmrepmtl.apis.splits import loader_of
from mmrepmtl.engine.last_checkpoint import find_checkpoint
from mmrepmtl.registry import DATASETS, MODELS
from mmrepmtl.utils.checkpoint import load_checkpoint, trust_checkpoints
from mmrepmtl.utils.device import resolve_device


def find_run(
    config_or_workdir: str | Path, checkpoint: str | Path | None = None, trust_checkpoint: bool = False
) -> tuple[Config, Path]:
    """The config and the checkpoint of a run.

    Args:
        config_or_workdir: A config file, the name of a config of this package, or the work directory of a run, which
            holds the config that it ran with.
        checkpoint: The file; None takes the last one of the work directory.

    Raises:
        FileNotFoundError: There is no such config, directory or checkpoint.
        ValueError: A config file without a checkpoint, or a work directory with several configs; says what to give.
    """
    path = Path(config_or_workdir)
    if not path.is_dir():
        try:
            path = find_config(path)
        except FileNotFoundError as error:
            raise FileNotFoundError(f'there is no config or work directory {path}: {error}') from error
        if checkpoint is None:
            raise ValueError(f'{path}: a config file needs a checkpoint; give one, or the work directory of a run')
        return read_config(path), Path(checkpoint)
    configs = sorted(path.glob('*.py'))
    if not configs:
        raise FileNotFoundError(f'{path}: there is no config in this work directory; give the config file')
    if len(configs) > 1:
        raise ValueError(
            f'{path}: {len(configs)} configs in this work directory ({", ".join(file.name for file in configs)}); give '
            'the right one and a checkpoint'
        )
    return read_config(configs[0]), _last_checkpoint(path, trust_checkpoint) if checkpoint is None else Path(checkpoint)


def _last_checkpoint(folder: Path, trust: bool) -> Path:
    """The last checkpoint of a run in this folder, wherever it was made; what is wrong with others is printed."""
    notes: list[str] = []
    found = find_checkpoint(Config(dict(work_dir=str(folder))), trust, notes, weights_only=True)
    if found is None:
        raise FileNotFoundError(f'{folder}: there is no checkpoint in this work directory; give one')
    for note in notes:
        print_log(note, logger='current', level=logging.WARNING)
    return found


def load_model(
    cfg: Config, checkpoint: str | Path, device: str | torch.device | None = None, trust_checkpoint: bool = False
) -> tuple[nn.Module, dict[str, Any]]:
    """Builds the model of a config with the weights of a checkpoint, for evaluation.

    Pretrained weights that the config names are not looked for: the checkpoint holds them all.

    Args:
        cfg: The config.
        checkpoint: The file.
        device: None: a GPU where there is one, else the CPU.
        trust_checkpoint: Load a checkpoint that holds more than data.

    Returns:
        The model and what the checkpoint holds.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the checkpoint is refused or does not fit the model, or this machine has no such device.
    """
    device = resolve_device(device)
    with trust_checkpoints(trust_checkpoint):
        return _build(cfg, checkpoint, device)


def _build(cfg: Config, checkpoint: str | Path, device: torch.device) -> tuple[nn.Module, dict[str, Any]]:
    state = load_checkpoint(checkpoint)
    init_default_scope(cfg.get('default_scope', 'mmrepmtl'))
    config = copy.deepcopy(cfg.model)
    encoder = config.get('encoder') or {}
    for key, without in (('pretrained', False), ('checkpoint', None)):
        if key in encoder:
            encoder[key] = without
    model = MODELS.build(config)
    load_weights(model, state['state_dict'], checkpoint)
    return model.to(device).eval(), state


def target_declarations(cfg: Config, state: Mapping[str, Any]) -> dict[str, dict]:
    """``metainfo['targets']`` of the data that a checkpoint was trained on: its own, else the config's.

    Args:
        cfg: The config.
        state: What the checkpoint holds.

    Raises:
        ValueError: If neither declares targets.
    """
    targets = state.get('meta', {}).get('dataset_meta', {}).get('targets')
    if targets is None:
        loader = next((loader for split in ('test', 'val', 'train') if (loader := loader_of(cfg, split))), None)
        if loader is not None:
            init_default_scope(cfg.get('default_scope', 'mmrepmtl'))
            targets = DATASETS.build(dict(loader['dataset'], lazy_init=True)).metainfo.get('targets')
    if not targets:
        raise ValueError(
            'neither the checkpoint nor the data set of the config declares targets (classes, kinds); use a data set '
            'derived from MultiTaskDataset'
        )
    return dict(targets)
