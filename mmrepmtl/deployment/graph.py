"""A multi-task model as one graph: from images in [0, 1] to what each task predicts, and what that is in words."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrepmtl.models import MultiTaskDataPreprocessor, MultiTaskModel
from mmrepmtl.models.heads import DenseHead, TaskHead
from mmrepmtl.structures import KINDS, KindTable, MultiTaskDataSample

#: Name of the graph's input.
INPUT = 'images'

_MAP = ('batch', 'channel', 'height', 'width')
#: (what the output holds, its axes).
FORMS: KindTable[tuple[str, tuple[str, ...]]] = KindTable(
    'mmrepmtl.deployment.graph.FORMS',
    dict(
        segmentation=('class logits', ('batch', 'class', 'height', 'width')),
        binary=('probability of yes', _MAP),
        depth=('depth', _MAP),
        normals=('unit vectors, channels (right, into the scene, up)', _MAP),
        classification=('class probabilities', ('batch', 'class')),
        regression=('values', ('batch', 'value')),
    ),
)


class OnnxGraph(nn.Module):
    """The exported module: the normalisation and padding of the data preprocessor, the network, and the predictions.

    Outputs, in the order of the tasks, dense ones at the size of the images:

    ============== ==================================================================
    segmentation   (B, K, H, W) class logits, which can be resized before the arg max
    binary         (B, 1, H, W) probability
    depth          (B, 1, H, W) in metres (in the unit of the data set if inverse)
    normals        (B, 3, H, W) unit vectors
    classification (B, K) probabilities
    regression     (B, D) in the unit of the data set
    ============== ==================================================================

    But for the logits, and a channel of probabilities, this is what ``MultiTaskModel.predict`` returns.

    Args:
        model: The model, in evaluation mode.

    Raises:
        ValueError: Another data preprocessor than ours, a head of no known kind, or a task named like the input.
    """

    def __init__(self, model: MultiTaskModel) -> None:
        super().__init__()
        preprocessor = model.data_preprocessor
        if not isinstance(preprocessor, MultiTaskDataPreprocessor):
            raise ValueError(
                f'the data preprocessor {type(preprocessor).__name__} cannot be exported, only a '
                'MultiTaskDataPreprocessor can'
            )
        if INPUT in model.tasks:
            raise ValueError(f'a task is named {INPUT!r}, as the input of the exported graph is; rename the task')
        for task, head in model.heads.items():
            form_of(task, head)
        self.model = model
        self.divisor = preprocessor.size_divisor

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps images (B, 3, H, W), RGB in [0, 1], to one output per task."""
        height, width = images.shape[-2:]
        images = self.model.data_preprocessor.normalise(images)
        if self.divisor > 1:
            images = F.pad(images, (0, -width % self.divisor, 0, -height % self.divisor))
        outputs = self.model.raw_outputs(images)
        if self.divisor > 1:
            dense = [task for task, head in self.model.heads.items() if isinstance(head, DenseHead)]
            outputs |= {task: outputs[task][..., :height, :width] for task in dense}
        return tuple(_finish(head, outputs[task]) for task, head in self.model.heads.items())

    def __repr__(self) -> str:
        # torch's exporter prints what it exports, and mmseg has a head (VPDDepthHead) that cannot be printed.
        return f'{type(self).__name__}({type(self.model).__name__})'


def _finish(head: TaskHead, output: Tensor) -> Tensor:
    """From the raw output to the output of the graph."""
    if head.kind == 'classification':
        return output.softmax(dim=1)
    if head.kind == 'segmentation' or not isinstance(head, DenseHead):
        return output
    predicted = head.prediction(output)
    return predicted[:, None] if head.kind == 'binary' else predicted


class Prediction(NamedTuple):
    """``value`` as in the graph's output, and ``weight`` (B, 1, H, W) in [0, 1]: how well defined it is; None is 1."""

    value: Tensor
    weight: Tensor | None = None


@torch.no_grad()
def predict(model: MultiTaskModel, images: Tensor) -> dict[str, Prediction]:
    """The same outputs by the model's own way to predictions, through its data preprocessor and its heads' ``predict``.

    Args:
        model: The model, in evaluation mode.
        images: (B, 3, H, W), RGB in [0, 1].
    """
    samples = [MultiTaskDataSample() for _ in images]
    data = model.data_preprocessor(dict(inputs=list(images), data_samples=samples), training=False)
    height, width = images.shape[-2:]
    predictions = {}
    for task, output in model.raw_outputs(data['inputs']).items():
        head = model.heads[task]
        if head.kind == 'segmentation':
            predictions[task] = Prediction(output[..., :height, :width])
            continue
        value, weight = torch.stack(head.predict(output, data['data_samples'])), None
        if head.kind == 'binary':
            value = value[:, None]
        if KINDS[form_of(task, head)[0]].directions:
            # The direction of a vector near zero is made of rounding errors.
            length = output[..., :height, :width].norm(dim=1, keepdim=True)
            weight = (length / length.median().clamp(min=1e-12)).clamp(max=1)
        predictions[task] = Prediction(value, weight)
    return predictions


def form_of(task: str, head: TaskHead) -> tuple[str, str, tuple[str, ...]]:
    """Kind, content and axes of a task's output.

    Raises:
        ValueError: The head is of no known kind.
    """
    if head.kind is not None and head.kind in FORMS:
        return head.kind, *FORMS[head.kind]
    known = ', '.join(KINDS[kind].head for kind in FORMS)
    raise ValueError(
        f'task {task!r}: what a {type(head).__name__} predicts is not known here; derive it from one of {known}'
    )


def describe(model: MultiTaskModel, targets: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Describes each output: kind, content and axes, and its unit, names and colours if it has any.

    Args:
        model: The model.
        targets: Declarations of the targets, as in the ``metainfo`` of a data set.

    Raises:
        ValueError: A target is not declared, as another kind than its head's, or with another number of names than
            the task has outputs.
    """
    described = {}
    for task, head in model.heads.items():
        target = head.target_name
        if target not in targets:
            raise ValueError(f'task {task!r}: the target {target!r} is not declared; there are {list(targets)}')
        meta = targets[target]
        kind, holds, axes = form_of(task, head)
        if meta.get('kind') != kind:
            raise ValueError(
                f'task {task!r}: {type(head).__name__} predicts {kind}, but the target {target!r} is declared as '
                f'{meta.get("kind")!r}'
            )
        about: dict[str, Any] = dict(kind=kind, holds=holds, axes=list(axes))
        if kind == 'depth':
            inverse = bool(meta.get('inverse'))
            about.update(holds='inverse depth' if inverse else 'depth', unit='of the data set' if inverse else 'metre')
        if kind == 'regression':
            about['unit'] = 'of the data set'
        for key in ('classes', 'names', 'palette'):
            if meta.get(key) is not None:
                about[key] = _listed(task, key, meta[key], getattr(head.decoder, 'out_channels', None))
        described[task] = about
    return described


def _listed(task: str, key: str, values: Sequence, width: int | None) -> list:
    """The names or colours as JSON has them, as many as the task has outputs."""
    if width is not None and len(values) != width:
        raise ValueError(f'task {task!r} has {width} outputs, but its target declares {len(values)} {key}')
    return [[int(part) for part in value] if key == 'palette' else str(value) for value in values]
