"""Predictions of the tested checkpoints on a few test samples, as data URIs, drawn once per checkpoint."""

import base64
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmrepmtl.apis.loading import find_run, load_model
from mmrepmtl.apis.splits import dataset_of
from mmrepmtl.comparison.report.history import log_folders
from mmrepmtl.evaluation import load_results
from mmrepmtl.models import MultiTaskModel
from mmrepmtl.registry import DATASETS
from mmrepmtl.structures import KINDS
from mmrepmtl.utils.files import whole_file
from mmrepmtl.visualization.draw import to_array, to_picture
from mmrepmtl.visualization.panels import fit, make_pair, palette_of

#: In the folder of a run.
CACHE = 'report_samples.json'
#: Test samples, spread evenly over the set.
SAMPLES = 4
_WIDTH, _MOST_HEIGHT, _VERSION, _TOP_CLASSES = 192, 384, 2, 3

Drawn = dict[str, dict[str, Any]]
"""{number of the sample: dict(name, image, tasks={task: dict(truth, prediction, legend)})}.

Pictures are data URIs; a class or numbers are lines of text.
"""


class NotDrawn(Exception):
    """A checkpoint that was not drawn before, where nothing is to be drawn now."""


def draw_run(folder: Path, label: str, count: int = SAMPLES, draw: bool = True) -> Drawn:
    """The predictions of a finished run.

    They are kept in the folder of the run and drawn again when its checkpoint, its config or the samples are others.

    Args:
        folder: The run's folder.
        label: Its label; the single-task baseline has a model per task.
        count: How many samples.
        draw: Whether to draw what was not drawn before.

    Raises:
        NotDrawn: It was not, and ``draw`` is False.
        OSError, ValueError, RuntimeError: The checkpoint, the config or the data set is not there or cannot be used.
    """
    folders = log_folders(folder, label)
    if not folders:
        raise FileNotFoundError(f'{folder}: there is no run in this folder')
    found: Drawn = {}
    for own in folders:
        for number, sample in _draw_model(own, count, draw).items():
            if number in found:
                found[number]['tasks'] |= sample['tasks']
            else:
                found[number] = sample
    return found


def _draw_model(folder: Path, count: int, draw: bool) -> Drawn:
    cfg, checkpoint = find_run(folder, _tested_checkpoint(folder))
    status = checkpoint.stat()
    configs = ''.join(file.read_text(encoding='utf-8') for file in sorted(folder.glob('*.py')))
    source = [_VERSION, checkpoint.name, status.st_size, status.st_mtime_ns, count, configs]
    key = hashlib.sha256(json.dumps(source).encode()).hexdigest()
    cache = folder / CACHE
    known = _read(cache)
    if known.get('key') == key:
        return known['samples']
    if not draw:
        raise NotDrawn(f'{folder} was not drawn yet')
    model, _ = load_model(cfg, checkpoint)
    if not isinstance(model, MultiTaskModel):
        raise ValueError(f'{folder}: only a MultiTaskModel is drawn, this is {type(model).__name__}')
    dataset = DATASETS.build(dict(dataset_of(cfg, 'test', 'report')))
    samples = {name: _draw_sample(model, dataset, index) for name, index in choose_samples(dataset, count).items()}
    with whole_file(cache) as file:
        file.write(json.dumps(dict(key=key, samples=samples)).encode())
    return samples


def _tested_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that the numbers are of; None where that is not told or it is gone, and the last one is drawn."""
    file = folder / 'test_metrics.json'
    if not file.is_file():
        return None
    path = Path(str(load_results(file)[1].get('checkpoint', '')))
    return path if path.is_file() else None


def _read(cache: Path) -> dict[str, Any]:
    """Reads what was drawn before; nothing if the file is not there or damaged, and all is drawn anew."""
    try:
        known = json.loads(cache.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) and isinstance(known.get('samples'), dict) else {}


def choose_samples(dataset: Any, count: int) -> dict[str, int]:
    """{name: index} of samples that lie evenly over a data set, or over each domain of one.

    A domain's samples are numbered by themselves, as the data set of a single-task run has them.

    Args:
        dataset: The test set.
        count: How many; of several domains each has at least its part.
    """
    domains = getattr(dataset, 'domains', None)
    if domains is None:
        count = min(count, len(dataset))
        return {str(index): index for index in [number * len(dataset) // count for number in range(count)]}
    each = -(-count // len(domains))
    found: dict[str, int] = {}
    for name, indices in domains.items():
        own = min(each, len(indices))
        numbers = [number * len(indices) // own for number in range(own)]
        found |= {f'{name} {number}': indices[number] for number in numbers}
    return found


@torch.no_grad()
def _draw_sample(model: MultiTaskModel, dataset: Any, index: int) -> dict[str, Any]:
    item = dataset[index]
    (sample,) = model.test_step(dict(inputs=[item['inputs']], data_samples=[item['data_samples']]))
    sample = sample.to('cpu')
    picture = to_picture(item['inputs'], sample)
    width = min(_WIDTH, picture.shape[1]) if picture.shape[1] > _WIDTH // 2 else 2 * picture.shape[1]
    size = min(max(round(picture.shape[0] * width / picture.shape[1]), 1), _MOST_HEIGHT), width
    declared = dataset.metainfo['targets']
    labelled = [task for task, head in model.heads.items() if head.target in sample.targets]
    tasks = {}
    # A sample that belongs to one domain shows that domain's task only.
    for task in labelled or list(model.heads):
        target = str(model.heads[task].target)
        tasks[task] = _draw_task(sample, task, target, declared[target], size)
    name = Path(str(sample.get('img_path') or '')).name or f'sample {index}'
    return dict(name=name, image=encode(fit(picture, size, smooth=True)), tasks=tasks)


def _draw_task(sample: Any, task: str, target: str, meta: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    truth = sample.targets.get(target)
    truth = None if truth is None else to_array(truth)
    prediction = to_array(sample.predictions[task])
    if meta['kind'] in LINES:
        told, predicted = LINES[meta['kind']](truth, prediction, meta)
        return dict(truth=told, prediction=predicted, legend=dict(text=''))
    pair = make_pair(meta['kind'], truth, prediction, meta, size)
    exact = KINDS[meta['kind']].has_ids or not KINDS[meta['kind']].dense
    return dict(
        truth=None if truth is None else encode(pair.truth, exact),
        prediction=encode(pair.prediction, exact),
        legend=_legend(meta, truth, pair.scale),
    )


Lines = tuple[list[str] | None, list[str]]


def _class_lines(truth: np.ndarray | None, prediction: np.ndarray, meta: Mapping[str, Any]) -> Lines:
    best = np.argsort(-prediction, kind='stable')[:_TOP_CLASSES]
    told = None if truth is None else [str(meta['classes'][int(truth)])]
    return told, [f'{prediction[index]:.2f} {meta["classes"][index]}' for index in best]


def _number_lines(truth: np.ndarray | None, prediction: np.ndarray, meta: Mapping[str, Any]) -> Lines:
    def lines(values: np.ndarray) -> list[str]:
        return [f'{name} {value:.4g}' for name, value in zip(meta['names'], values, strict=True)]

    return None if truth is None else lines(truth), lines(prediction)


#: Kinds that are told in words; others are drawn as their panels. Functions of (truth, prediction, declaration).
LINES: dict[str, Callable[..., Lines]] = dict(classification=_class_lines, regression=_number_lines)


def _legend(meta: Mapping[str, Any], truth: np.ndarray | None, scale: Sequence[Any] | None) -> dict[str, Any]:
    """Says what the colours mean: names of classes with their colours, or a text."""
    kind = KINDS[meta['kind']]
    if kind.dense and kind.names == 'classes':
        colours = [[int(channel) for channel in colour] for colour in palette_of(meta)]
        there = None if truth is None else set(np.unique(truth).tolist())
        classes = [
            [str(name), colour]
            for number, (name, colour) in enumerate(zip(meta['classes'], colours, strict=True))
            if there is None or number in there
        ]
        return dict(classes=classes)
    if scale is not None:
        return dict(text=f'{scale[0]:.2f} (dark) to {scale[1]:.2f} {scale[2]} (yellow)')
    return dict(text=kind.legend if kind.dense else '')


def encode(picture: np.ndarray, exact: bool = False) -> str:
    """A picture (H, W, 3) uint8 as a data URI; ``exact`` keeps every pixel as it is."""
    file = io.BytesIO()
    options: dict[str, Any] = dict(lossless=True) if exact else dict(quality=82)
    Image.fromarray(np.ascontiguousarray(picture)).save(file, format='WEBP', method=6, **options)
    return 'data:image/webp;base64,' + base64.b64encode(file.getvalue()).decode()
