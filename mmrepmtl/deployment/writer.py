"""From a multi-task model to the content of an ONNX file, by torch's exporter."""

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import nn

from mmrepmtl.deployment.graph import INPUT, OnnxGraph
from mmrepmtl.models import MultiTaskModel

#: A protocol buffer, and so a file without files beside it, holds no more.
_MAX_BYTES = 2**31 - 2**24


class OnnxFile(NamedTuple):
    """The ``content`` of a file, its ``opset`` and {task: shape of its output}, with names for the free axes."""

    content: bytes
    opset: int
    shapes: dict[str, list[int | str]]


def to_onnx(
    model: MultiTaskModel,
    size: Sequence[int],
    metadata: Mapping[str, str],
    opset: int | None = None,
    dynamic_size: bool = False,
) -> OnnxFile:
    """Makes the content of an ONNX file, which is not compared with anything yet.

    Args:
        model: The model, in evaluation mode, on the CPU.
        size: (height, width) of the images.
        metadata: The entries of the file's ``metadata_props``.
        opset: Version of the ONNX operators; None takes the exporter's.
        dynamic_size: Leave height and width free.

    Raises:
        ValueError: The model cannot be exported, with the operator or the reason; ``opset`` cannot be had.
    """
    import onnx

    _check_bytes(model)
    graph = OnnxGraph(model).eval()
    free = {0: 'batch'} | ({2: 'height', 3: 'width'} if dynamic_size else {})
    # Unlike those that are compared: an axis that is fixed by mistake shows.
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with _quiet(), _plain_attention(model), torch.no_grad():
        # The exporter lets through whatever goes wrong in tracing the model.
        try:
            program = torch.onnx.export(
                graph,
                (images,),
                dynamo=True,
                input_names=[INPUT],
                dynamic_shapes=(free,),
                opset_version=opset,
                verbose=False,
            )
        except Exception as error:
            raise ValueError(f'the model cannot be exported to ONNX: {_reason(error)}') from error
    assert program is not None  # which it is only without dynamo
    _name_outputs(program.model.graph, model.tasks)
    _forget_sources(program.model)
    program.model.metadata_props.update(metadata)
    proto = program.model_proto
    found = next(entry.version for entry in proto.opset_import if entry.domain in ('', 'ai.onnx'))
    if opset not in (None, found):
        raise ValueError(
            f'opset {opset} cannot be had for this model, opset {found} can; leave --opset out or give another one'
        )
    try:
        onnx.checker.check_model(proto, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ValueError(f'the exporter made a graph that is no valid ONNX: {error}') from error
    shapes = {
        output.name: [axis.dim_param or axis.dim_value for axis in output.type.tensor_type.shape.dim]
        for output in proto.graph.output
    }
    return OnnxFile(proto.SerializeToString(), found, shapes)


def _check_bytes(model: nn.Module) -> None:
    tensors = [*model.parameters(), *model.buffers()]
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if total > _MAX_BYTES:
        raise ValueError(f'the model has {total / 2**30:.1f} GiB of weights, one ONNX file holds 2 GiB')


def _name_outputs(graph: Any, tasks: Sequence[str]) -> None:
    """Names the outputs by task; inner values are named by operators, and a task may have the name of one."""
    values = [value for node in graph.all_nodes() for value in node.outputs]
    taken = {value.name for value in (*values, *graph.inputs)} | set(graph.initializers)
    for value in (*values, *graph.initializers.values()):
        if value.name in tasks:
            numbered = (f'{value.name}.{number}' for number in count(1))
            value.name = next(name for name in numbered if name not in taken)
            taken.add(value.name)
    for output, task in zip(graph.outputs, tasks, strict=True):
        output.name = task


def _forget_sources(model: Any) -> None:
    """Removes the exporter's notes, among them the paths of this machine's source files."""
    graph = model.graph
    nodes = list(graph.all_nodes())
    values = [value for node in nodes for value in node.outputs]
    for part in (model, graph, *nodes, *values, *graph.inputs, *graph.initializers.values()):
        part.metadata_props.clear()
        part.doc_string = None


@contextlib.contextmanager
def _plain_attention(model: nn.Module) -> Iterator[None]:
    """Lets timm compute attention step by step: torch's exporter knows the fused one for four axes only."""
    fused: list[Any] = [part for part in model.modules() if getattr(part, 'fused_attn', False)]
    for part in fused:
        part.fused_attn = False
    try:
        yield
    finally:
        for part in fused:
            part.fused_attn = True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back the exporter's advice; what matters of it becomes an error."""
    loggers = [logging.getLogger(name) for name in ('torch.onnx', 'torch.export', 'onnxscript', 'onnx_ir')]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _reason(error: BaseException) -> str:
    """The operator that the exporter stopped at, if it did, and the first line of what began it all."""
    operator = None
    while True:
        operator = operator or re.search(r'target=torch\.ops\.([\w.]+)', str(error))
        if error.__cause__ is None:
            break
        error = error.__cause__
    fixed = re.search(r'inferred a static shape of (\d+) for dimension inputs\[0\]\.shape\[(\d)\]', str(error))
    if fixed:
        axis = ('batch size', 'number of channels', 'height', 'width')[int(fixed[2])]
        return f'its code works with one {axis} only, so that it cannot stay free'
    text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return f'operator {operator[1]}: {text}' if operator else text
