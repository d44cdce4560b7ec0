"""The objective of one forward pass: transformed, weighted losses and the regularisers' terms, with what is logged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from mmrepmtl.engine.nonfinite import NonFinite, check_finite
from mmrepmtl.engine.task_losses import TaskLosses, check_connected
from mmrepmtl.methods.collectives import num_processes
from mmrepmtl.methods.regularizer import Regularizer
from mmrepmtl.methods.weighting import Weighting


@dataclass
class Step:
    """What the forward hooks leave for the backward of the same iteration.

    Attributes:
        views: The views of Z that the heads read.
        losses: The losses of the model.
        objectives: Each task's weighted, transformed loss; the weight is a constant.
        weighted: The weighting's scalar, with the gradient of what it learns.
        rest: What belongs to no task (penalties, unclaimed losses), or None; without a graph in iterations that a
            regulariser leaves out.
    """

    views: list[Tensor]
    losses: TaskLosses
    objectives: list[Tensor]
    weighted: Tensor
    rest: Tensor | None


def transform_losses(losses: TaskLosses, transform: str | None, iteration: int) -> list[Tensor]:
    """The transformed losses; 0 for tasks without a label.

    Raises:
        ValueError: If a loss is not positive and the transform is the log.
    """
    if transform is None:
        return list(losses.losses.values())
    for task, loss in losses.labelled().items():
        if loss <= 0:
            advice = (
                "; zero_loss='unlabelled' would leave the task out of such batches"
                if loss == 0
                else '; take a loss that is bounded below by 0, or loss_transform=None'
            )
            raise ValueError(
                f'MultiTaskOptimWrapper: the loss of task {task!r} is {loss.item():g} in iteration {iteration}; '
                f"loss_transform='log' needs positive losses{advice}"
            )
    pairs = zip(losses.losses.values(), losses.labelled_T.tolist(), strict=True)
    return [loss.log() if labelled else loss * 0.0 for loss, labelled in pairs]


def weigh(weighting: Weighting, transformed: Sequence[Tensor], labelled_T: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted objective and the weights (T,); whether it becomes part of a step is not known yet.

    The weighting sees values only: its learned weights get the gradient of the global objective on every rank.
    """
    leaf_T = torch.stack([value.detach() for value in transformed]).requires_grad_()
    scalar = weighting(leaf_T, None if labelled_T.all() else labelled_T, advance=False)
    weights_T = torch.autograd.grad(scalar, leaf_T, retain_graph=True)[0]
    if not weighting.learned():
        scalar = scalar.detach()
    terms = (w * (value - value.detach()) for w, value in zip(weights_T, transformed, strict=True))
    return scalar + sum(terms), weights_T


def objective(wrapper, representation, losses: TaskLosses, step: Step, slices, full_report: bool) -> dict[str, Tensor]:
    """Fills ``step`` with the objective of a MultiTaskOptimWrapper; returns what is logged.

    Args:
        wrapper: The optim wrapper.
        representation: Z, as a regulariser takes it.
        losses: Of this forward pass.
        step: What is filled.
        slices: The rows of Z of tasks with samples of their own, or None.
        full_report: Whether all diagnostics are wanted.

    Raises:
        NonFinite: If a loss or penalty is not finite.
        ValueError: For a loss that the transform or a method cannot take.
    """
    check_finite(list(losses.losses), losses.losses_T, losses.extra)
    check_connected(losses)
    transformed = transform_losses(losses, wrapper.loss_transform, wrapper.inner_count)
    step.weighted, weights_T = weigh(wrapper.weighting, transformed, losses.labelled_T)
    for regularizer in wrapper.regularizers:
        regularizer.backward_scale = wrapper.scale_loss(1.0)
        regularizer.slices = slices
        regularizer.measure_gradient = full_report and wrapper.aggregator is None
    penalty, report = regularize(
        wrapper.regularizers,
        losses,
        representation,
        weights_T,
        wrapper.loss_transform == 'log',
        full_report,
        wrapper.process_group,
        wrapper.precision.scale,
    )
    rest = [term for term in (penalty, losses.extra) if term is not None]
    step.rest = sum(rest) if rest else None
    step.objectives = [w * value for w, value in zip(weights_T, transformed, strict=True)]
    return losses.log | {f'weight/{task}': w for task, w in zip(losses.losses, weights_T, strict=True)} | report


def regularize(
    regularizers: Sequence[Regularizer],
    losses: TaskLosses,
    representation,
    weights_T: Tensor,
    log_loss: bool,
    full_report: bool,
    group,
    scale: float | Tensor,
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """The sum of the regularisers' terms, and their diagnostics, both averaged over ranks in value.

    Args:
        regularizers: Those of the run; without any, or without a labelled task, the sum is None.
        losses: Of this forward pass.
        representation: Z, as the shared module returned it, of views.
        weights_T: The weights of the transformed losses in the objective.
        log_loss: Whether the objective is made of log losses.
        full_report: Whether all diagnostics are wanted, or the terms alone.
        group: Process group of the reduction.
        scale: As in the regularisers' forward.

    Raises:
        NonFinite: If the sum is not finite.
    """
    active = losses.labelled()
    if not (regularizers and active):
        return None, {}
    slopes_T = 1 / losses.losses_T if log_loss else torch.ones_like(weights_T)
    terms, report = [], {}
    for regularizer in regularizers:
        in_log = getattr(regularizer, 'saliency_transform', None) == 'log'
        factors_T = weights_T * slopes_T * (losses.losses_T if in_log else 1)
        factors = factors_T[losses.labelled_T]
        values = regularizer(active, representation, scale=scale, advance=False, task_weights=factors)
        terms += values.values()
        for key, value in regularizer.diagnostics.items():
            if full_report or key in ('tsr', 'csa'):
                report[f'{regularizer.name}/{key}'] = value
    penalty = sum(terms)
    report = mean_over_ranks(dict(penalty=penalty.detach(), **report), losses.losses_T, group)
    if not torch.isfinite(report['penalty']):
        raise NonFinite('penalty', value=report['penalty'].item())
    return penalty + (report['penalty'] - penalty.detach()), report


def mean_over_ranks(report: Mapping[str, float | Tensor], like: Tensor, group) -> dict[str, Tensor]:
    """Averages named scalars in one collective; every rank must hold the same names."""
    values = like.new_tensor([float(value) for value in report.values()])
    if num_processes() > 1 and report:
        dist.all_reduce(values, group=group)
        values /= num_processes()
    return dict(zip(report, values, strict=True))
