"""A trained model as an ONNX file that is known to predict what PyTorch predicts."""

import copy
import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config

from mmrepmtl.apis.image_pipeline import ImagePipeline
from mmrepmtl.apis.loading import find_run, load_model, target_declarations
from mmrepmtl.apis.onnx_check import Difference, compare
from mmrepmtl.apis.onnx_graph import INPUT, describe, predict
from mmrepmtl.apis.onnx_writer import to_onnx
from mmrepmtl.models import MultiTaskModel
from mmrepmtl.utils.files import whole_file
from mmrepmtl.utils.folders import check_writable
from mmrepmtl.version import __version__

INSTALL = "pip install 'mmrepmtl[deploy]'"
#: What is added to (H, W) for the sizes that a graph of free size is checked at. The first keeps multiples of 32.
_LARGER, _ODD = (32, 64), (9, 5)


@dataclass(frozen=True)
class OnnxExport:
    """A file that was written.

    Attributes:
        path: The file.
        checkpoint: What it was made of.
        size: (H, W) of the images, None where it is free.
        opset: Version of the ONNX operators.
        tasks: {task: what its output is}, as in the file's metadata.
        shapes: {task: shape of its output}, with names for the axes that are free.
        differences: {task: the largest difference from PyTorch}.
        checked: The sizes (H, W) of the comparison.
    """

    path: Path
    checkpoint: Path
    size: tuple[int, int] | None
    opset: int
    tasks: dict[str, dict[str, Any]]
    shapes: dict[str, list[int | str]]
    differences: dict[str, Difference]
    checked: list[tuple[int, int]]


def export_onnx(
    config_or_workdir: str | Path,
    checkpoint: str | Path | None = None,
    out: str | Path | None = None,
    size: Sequence[int] | None = None,
    opset: int | None = None,
    dynamic_size: bool = False,
    tolerance: float = 1e-4,
    trust_checkpoint: bool = False,
) -> OnnxExport:
    """Writes a model as ONNX after the graph was compared with PyTorch; docs/deployment.md says what is in the file.

    Args:
        config_or_workdir: A config file, or the work directory of a run.
        checkpoint: The file; None takes the last one of the work directory.
        out: The file to write; None: beside the checkpoint, with the ending ``.onnx``.
        size: (height, width) in pixels of the images, instead of what the config's test pipeline makes.
        opset: Version of the ONNX operators; None takes the exporter's.
        dynamic_size: Leave height and width free, as the batch always is; then ``size`` is what is traced with.
        tolerance: The largest difference from PyTorch that passes, as a fraction of the output's largest magnitude.
        trust_checkpoint: Load a checkpoint that holds more than data.

    Raises:
        ImportError: A package is missing; says what to install.
        FileNotFoundError: There is no such config, directory or checkpoint.
        ValueError: The file cannot be written, the checkpoint is refused or does not fit, the config names no size, the
            model cannot be exported, or the exported graph differs from PyTorch, with the task. Nothing is written
            then, and a file that was there stays.
    """
    _need_packages()
    cfg, checkpoint = find_run(config_or_workdir, checkpoint, trust_checkpoint)
    path = checkpoint.with_suffix('.onnx') if out is None else Path(out)
    if path.suffix != '.onnx':
        raise ValueError(f'{path}: the file to write must end with .onnx')
    if path.is_dir():
        raise ValueError(f'{path}: is a folder; give the name of a file in it')
    check_writable(path.parent, make=False)
    model, state = load_model(_without_compilation(cfg), checkpoint, 'cpu', trust_checkpoint)
    if not isinstance(model, MultiTaskModel):
        raise ValueError(f'only a MultiTaskModel is exported, the config has {type(model).__name__}')
    tasks = describe(model, target_declarations(cfg, state))
    size = input_size(cfg, size)
    about = dict(
        generator=f'mmrepmtl {__version__}',
        checkpoint=checkpoint.name,
        input=json.dumps(describe_input(None if dynamic_size else size)),
        tasks=json.dumps(tasks),
    )
    checked = [size, *(_other_sizes(model, size) if dynamic_size else ())]
    made = to_onnx(model, size, about, opset, dynamic_size)
    differences = compare(made.content, model, checked, tolerance)
    with whole_file(path) as file:
        file.write(made.content)
    return OnnxExport(
        path, checkpoint, None if dynamic_size else size, made.opset, tasks, made.shapes, differences, checked
    )


def input_size(cfg: Config, size: Sequence[int] | None = None) -> tuple[int, int]:
    """(height, width) of the images that the network gets in a test: ``size``, else that of the config's pipeline.

    Raises:
        ValueError: The config names none, or ``size`` is not two positive numbers.
    """
    if size is not None:
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f'size={tuple(size)} must be (height, width), both at least 1')
        return int(size[0]), int(size[1])
    pipeline = ImagePipeline(cfg)
    if pipeline.keeps_size:
        raise ValueError(
            'the config names no size of the network input; give the one that it was trained at: --size H W'
        )
    # The picture's own size does not matter to a pipeline that has one.
    prepared = pipeline(np.zeros((64, 64, 3), np.float32), 'a black picture')
    return prepared.inputs.shape[-2], prepared.inputs.shape[-1]


def describe_input(size: Sequence[int] | None) -> dict[str, Any]:
    """What the metadata of the file says of its input; ``size`` (H, W) is None where it is free."""
    height, width = ('height', 'width') if size is None else size
    return dict(
        name=INPUT,
        shape=['batch', 3, height, width],
        axes=['batch', 'channel', 'height', 'width'],
        type='float32',
        channels='RGB',
        range=[0, 1],
        normalisation='inside the graph',
    )


def _need_packages() -> None:
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            raise ImportError(f'the export needs {name}, which is not installed: {INSTALL}') from error


def _without_compilation(cfg: Config) -> Config:
    """The config without ``compile`` of the encoder: the comparison would compile it again for each shape."""
    cfg = copy.deepcopy(cfg)
    encoder = cfg.model.get('encoder') or {}
    if 'compile' in encoder:
        encoder['compile'] = False
    return cfg


def _other_sizes(model: MultiTaskModel, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Sizes that a graph of free size is checked at: a larger one, and an odd one where the network takes it.

    Raises:
        ValueError: The network does not take the larger one.
    """
    larger, odd = ((size[0] + more[0], size[1] + more[1]) for more in (_LARGER, _ODD))
    reason = _refusal(model, larger)
    if reason is not None:
        raise ValueError(
            f'the network does not take images of {larger[0]} x {larger[1]}, so its size cannot stay free: {reason}'
        )
    return [larger] if _refusal(model, odd) else [larger, odd]


def _refusal(model: MultiTaskModel, size: tuple[int, int]) -> str | None:
    """What the network has against images of a size, or None."""
    # Networks say it in many ways: assertions, shapes that do not fit, our own errors.
    try:
        predict(model, torch.zeros(1, 3, *size))
    except Exception as error:
        return f'{type(error).__name__}: {error}'.splitlines()[0]
    return None
