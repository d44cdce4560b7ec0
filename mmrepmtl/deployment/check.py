"""The comparison of an exported file with PyTorch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmrepmtl.models import MultiTaskModel

from .graph import INPUT, predict

#: Batch sizes that are compared; neither is the one that was exported with.
BATCHES = (1, 3)


@dataclass(frozen=True)
class Difference:
    """How far an output of the file is from PyTorch's.

    Attributes:
        absolute: The largest difference, in the unit of the output.
        relative: The same over the largest magnitude of PyTorch's output.
    """

    absolute: float
    relative: float


def compare(
    content: bytes, model: MultiTaskModel, sizes: Iterable[Sequence[int]], tolerance: float
) -> dict[str, Difference]:
    """Runs an ONNX file by onnxruntime on the CPU and compares all outputs with the model's own predictions.

    Args:
        content: The file's content.
        model: The model, in evaluation mode.
        sizes: (H, W) of the images; for each of them ``BATCHES`` are run.
        tolerance: The largest difference that passes, as a fraction of the output's largest magnitude: depth in
            millimetres and in kilometres are held to the same. Normals shorter than the median before they are
            normalised count by their length.

    Returns:
        {task: the largest difference over all runs}.

    Raises:
        ValueError: A difference is above the tolerance, an output has another shape, the file does not run, or the
            model's own prediction is random or not finite; names the task and the input.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # An error of onnxruntime is derived from RuntimeError or from Exception alone, by its code.
    try:
        session = onnxruntime.InferenceSession(content, options, providers=['CPUExecutionProvider'])
    except Exception as error:
        raise ValueError(f'onnxruntime cannot load the exported graph: {_first_line(error)}') from error
    worst = dict.fromkeys(model.tasks, Difference(0.0, 0.0))
    for height, width in sizes:
        for batch in BATCHES:
            images = make_images(batch, (height, width))
            where = f'{batch} x 3 x {height} x {width}'
            expected = _expected(model, images, where, tolerance)
            try:
                outputs = session.run(list(model.tasks), {INPUT: images.numpy()})
            except Exception as error:
                raise ValueError(f'onnxruntime cannot run the graph on images {where}: {_first_line(error)}') from error
            for task, output in zip(model.tasks, outputs, strict=True):
                found = difference(output, *expected[task], task, where)
                if not found.relative <= tolerance:
                    raise ValueError(
                        f'task {task!r}: the exported graph differs from PyTorch by {found.absolute:.2g} '
                        f'({found.relative:.2g} of the largest value) on images {where}, the tolerance is {tolerance:g}'
                    )
                before = worst[task]
                worst[task] = Difference(max(before.absolute, found.absolute), max(before.relative, found.relative))
    return worst


def difference(
    output: np.ndarray, expected: np.ndarray, weight: np.ndarray | None, task: str, where: str
) -> Difference:
    """Compares two arrays; values that are not finite in ``output`` make the difference infinite.

    Args:
        output, expected: Arrays of one shape.
        weight: Factor in [0, 1] of the differences, or None.
        task, where: Name them in errors.

    Raises:
        ValueError: The shapes differ.
    """
    if output.shape != expected.shape:
        raise ValueError(
            f'task {task!r}: the exported graph returns {output.shape} on images {where}, PyTorch {expected.shape}'
        )
    if not np.isfinite(output).all():
        return Difference(float('inf'), float('inf'))
    error = np.abs(output.astype(np.float64) - expected)
    absolute = float((error if weight is None else error * weight).max())
    scale = float(np.abs(expected).max())
    return Difference(absolute, absolute / scale if scale else (float('inf') if absolute else 0.0))


def make_images(batch: int, size: Sequence[int]) -> Tensor:
    """Different smooth colours with noise, ``(batch, 3, *size)`` in [0, 1], the same for the same arguments."""
    generator = torch.Generator().manual_seed(batch)
    colours = torch.rand(batch, 3, 4, 5, generator=generator)
    smooth = F.interpolate(colours, size=tuple(size), mode='bilinear')
    return (smooth + 0.1 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)


def _expected(
    model: MultiTaskModel, images: Tensor, where: str, tolerance: float
) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Values and weights of what PyTorch predicts, made sure of by a second look."""
    first, second = (
        {
            task: (found.value.numpy(), None if found.weight is None else found.weight.numpy())
            for task, found in looked.items()
        }
        for looked in (predict(model, images), predict(model, images))
    )
    for task, (value, weight) in first.items():
        if not np.isfinite(value).all():
            raise ValueError(f'task {task!r}: what PyTorch itself predicts on images {where} is not finite')
        again = difference(second[task][0], value, weight, task, where)
        if again.relative > tolerance:
            raise ValueError(
                f'task {task!r}: PyTorch itself predicts something else each time (by {again.absolute:.2g} on images '
                f'{where}), so that nothing can be compared; part of its network draws random numbers in evaluation'
            )
    return first


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
