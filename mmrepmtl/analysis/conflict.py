"""Conflict between tasks: cosines and norms of their gradients, at Z and at the shared parameters.

Two tasks conflict where the cosine of their gradients is negative: a step that lowers one loss raises the other. At Z
it is also measured for each sample, since that is the saliency that Rep-MTL's CSA compares.

Dimensions: T tasks, B samples, P shared parameters.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmrepmtl.analysis.forward import shared_forward
from mmrepmtl.engine.checks import check_own_samples
from mmrepmtl.engine.graph import leaves
from mmrepmtl.engine.task_losses import resolve_prefixes
from mmrepmtl.structures import MultiTaskDataSample

Batch = tuple[Sequence[Tensor], Sequence[MultiTaskDataSample]]


class BatchConflict(NamedTuple):
    """The gradients of one batch, float64 on the CPU.

    Attributes:
        tasks: Their names.
        losses_T: The losses.
        at_samples_BTT: Inner products of dL_t / dZ of each sample, all levels of Z together; their sum is that of the
            batch. None where each task has samples of its own.
        at_parameters_TT: Inner products of the gradients by the shared parameters.
    """

    tasks: tuple[str, ...]
    losses_T: Tensor
    at_samples_BTT: Tensor | None
    at_parameters_TT: Tensor


class Conflict(NamedTuple):
    """The result of :func:`conflict`: means over batches (and samples), float64; NaN where no batch has both gradients.

    Attributes:
        tasks: Their names.
        z_TT: Cosines at Z over the batch; None where each task has samples of its own, as the two below.
        samples_TT: Mean over samples of the cosine at Z.
        negative_TT: Share of samples whose cosine at Z is negative.
        parameters_TT: Cosines at the shared parameters.
        z_norm_T: Norms of dL_t / dZ; None as above.
        parameters_norm_T: Norms of the gradients by the shared parameters.
        losses_T: Mean losses: a norm divided by them is that of the log loss.
        batches: Number of batches.
        samples: Number of images.
    """

    tasks: tuple[str, ...]
    z_TT: Tensor | None
    samples_TT: Tensor | None
    negative_TT: Tensor | None
    parameters_TT: Tensor
    z_norm_T: Tensor | None
    parameters_norm_T: Tensor
    losses_T: Tensor
    batches: int
    samples: int


def batch_conflict(
    model: nn.Module,
    inputs: Sequence[Tensor],
    data_samples: Sequence[MultiTaskDataSample],
    shared: str,
    training: bool = False,
) -> BatchConflict:
    """Computes the gradients of the tasks on one batch, of the losses themselves (no log, no weight).

    Args:
        model: One that ``MultiTaskOptimWrapper`` could train and that names its ``tasks``.
        inputs: The images, (3, h, w) in [0, 1].
        data_samples: With the targets; a task without its target on a sample has no gradient there.
        shared: Name of the module whose output is Z.
        training: BatchNorm with the statistics of the batch, and dropout, as in training.

    Raises:
        ValueError: The shared module is unknown or was not called; there is one task only, or no trainable parameter
            that Z depends on.
    """
    own = check_own_samples(model, list(resolve_prefixes(None, model)), None)
    losses, capture, _ = shared_forward(model, inputs, data_samples, shared, training, own)
    tasks, views = tuple(losses.losses), capture.views
    if len(tasks) < 2:
        raise ValueError(f'conflict: the model has the task {tasks[0]!r} only; there is nothing to compare')
    upstream = leaves(views)
    parameters = [p for p in model.parameters() if p in upstream]
    if not parameters:
        raise ValueError(f'conflict: no trainable parameter lies before the output of {shared!r}; it is frozen')
    shares = getattr(model, 'encoder_forward', 'shared') == 'shared'
    at_z: list[list[Tensor]] = []
    rows: list[Tensor] = []
    for loss in losses.losses.values():
        wanted = [*views, *parameters]
        grads = (
            torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True)
            if loss.requires_grad
            else (None,) * len(wanted)
        )
        full = [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, grads, strict=True)]
        at_z.append(full[: len(views)])
        rows.append(torch.cat([grad.flatten() for grad in full[len(views) :]]))
    per_sample: Tensor | None = None
    if shares:
        # (level, B, T, T)
        inner = [_inner(torch.stack([own[level].flatten(1) for own in at_z], 1)) for level in range(len(views))]
        per_sample = torch.stack(inner).sum(0)
    return BatchConflict(
        tasks,
        losses.losses_T.cpu().double(),
        per_sample,
        _inner(torch.stack(rows)),
    )


def _inner(rows: Tensor) -> Tensor:
    """Inner products (..., T, T) of rows (..., T, P), on the CPU in float64.

    The rows are scaled first, since float32 has no squares of gradients of 1e-25.
    """
    scale = rows.abs().amax().clamp(min=torch.finfo(rows.dtype).tiny)
    rows = (rows / scale).double()
    return ((rows @ rows.mT) * scale.double().square()).cpu()


def cosines(inner: Tensor) -> Tensor:
    """Cosines (..., T, T) of inner products (..., T, T); NaN where one of the two gradients is zero."""
    norms = inner.diagonal(dim1=-2, dim2=-1).sqrt()
    product = norms[..., :, None] * norms[..., None, :]
    return torch.where(product > 0, inner / torch.where(product > 0, product, 1), math.nan).clamp(-1, 1)


def conflict(model: nn.Module, batches: Iterable[Batch], shared: str, training: bool = False) -> Conflict:
    """Measures the conflict of the tasks on batches; arguments and errors are those of :func:`batch_conflict`.

    Raises:
        ValueError: There is no batch.
    """
    found = [batch_conflict(model, inputs, samples, shared, training) for inputs, samples in batches]
    if not found:
        raise ValueError('conflict: there is no batch; give one, for example val:0-7')
    z = samples = negative = z_norm = None
    per_sample = [batch.at_samples_BTT for batch in found if batch.at_samples_BTT is not None]
    if per_sample:
        at_z = torch.stack([inner_BTT.sum(0) for inner_BTT in per_sample])
        z, z_norm = cosines(at_z).nanmean(0), _norms(at_z)
        own = cosines(torch.cat(per_sample))
        samples = own.nanmean(0)
        negative = torch.where(own.isnan(), math.nan, (own < 0).double()).nanmean(0)
    at_parameters = torch.stack([batch.at_parameters_TT for batch in found])
    return Conflict(
        found[0].tasks,
        z,
        samples,
        negative,
        cosines(at_parameters).nanmean(0),
        z_norm,
        _norms(at_parameters),
        torch.stack([batch.losses_T for batch in found]).mean(0),
        len(found),
        sum(map(len, per_sample)),
    )


def _norms(inner: Tensor) -> Tensor:
    """Mean over batches of the gradients' norms, (batches, T, T) to (T,)."""
    return inner.diagonal(dim1=-2, dim2=-1).sqrt().mean(0)
