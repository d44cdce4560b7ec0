"""From the losses of one forward pass to the record that its backward needs: weights, penalties, and what is logged."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.distributed as dist
from mmengine.logging import print_log
from torch import Tensor

from mmrepmtl.engine.nonfinite import NonFinite, check_finite
from mmrepmtl.engine.task_losses import TaskLosses, check_connected
from mmrepmtl.methods.collectives import num_processes
from mmrepmtl.methods.regularizer import Regularizer, RegularizerContext
from mmrepmtl.methods.weighting import Weighting


@dataclass(frozen=True, eq=False)
class Step:
    """What one forward pass leaves for its backward.

    Attributes:
        tasks: Names, in order.
        labelled_T: Which tasks have a label anywhere in the global batch, (T,) bool.
        views: The views of Z that the heads read.
        factor: 1 / number of micro-batches in the accumulation window.
        scale: The gradient scaler's scale; ``.grad`` is left multiplied by it.
        last: Whether the window ends here.
        weighted: The weighting's scalar, with the gradient of what it learns.
        objectives: Each task's weighted, transformed loss; the weight is a constant.
        rest: What belongs to no task (penalties, unclaimed losses), or None; without a graph in iterations that a
            regulariser leaves out.
        log: What the log shows, besides the objective.
        found: What is not finite; there is no backward then.
    """

    tasks: tuple[str, ...]
    labelled_T: Tensor
    views: Sequence[Tensor]
    factor: float
    scale: float
    last: bool
    weighted: Tensor
    objectives: Sequence[Tensor]
    rest: Tensor | None
    log: Mapping[str, Tensor]
    found: NonFinite | None = None

    @property
    def loss(self) -> Tensor:
        """The objective, a scalar."""
        return self.weighted if self.rest is None else self.weighted + self.rest

    @cached_property
    def objectives_T(self) -> Tensor:
        """Global values of :attr:`objectives`, (T,), for methods that read them."""
        return torch.stack([objective.detach() for objective in self.objectives])


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


def _without_backward(
    losses: TaskLosses,
    views: Sequence[Tensor],
    context: RegularizerContext,
    last: bool,
    found: NonFinite | None = None,
) -> Step:
    """The record of a forward pass whose window makes no step: its loss is the plain sum, for the log."""
    return Step(
        tasks=tuple(losses.losses),
        labelled_T=losses.labelled_T,
        views=views,
        factor=context.backward_scale,
        scale=context.scale,
        last=last,
        weighted=sum(losses.losses.values()),
        objectives=(),
        rest=None,
        log=losses.log,
        found=found,
    )


def objective(
    losses: TaskLosses,
    views: Sequence[Tensor],
    representation,
    *,
    weighting: Weighting,
    regularizers: Sequence[Regularizer],
    loss_transform: str | None,
    context: RegularizerContext,
    last: bool,
    full_report: bool,
    skipped: bool,
) -> Step:
    """The record of one forward pass. Nothing that it is given is changed, but what a method counts of its own calls.

    Args:
        losses: Of this forward pass.
        views: The views of Z that the heads read.
        representation: Z as a regulariser takes it, made of those views.
        weighting: The loss weighting.
        regularizers: Those of the run.
        loss_transform: ``'log'`` or None.
        context: What the regularisers are told; what depends on the losses is filled in here.
        last: Whether the accumulation window ends with this forward pass.
        full_report: Whether all diagnostics are wanted.
        skipped: Whether the window makes no step any more, so that no method is to see this pass.

    Raises:
        ValueError: For a loss that the transform or a method cannot take.
    """
    if skipped:
        return _without_backward(losses, views, context, last)
    try:
        check_finite(list(losses.losses), losses.losses_T, losses.extra)
    except NonFinite as error:
        return _without_backward(losses, views, context, last, error)
    check_connected(losses)
    transformed = transform_losses(losses, loss_transform, context.iteration)
    weighted, weights_T = weigh(weighting, transformed, losses.labelled_T)
    slopes_T = weights_T / losses.losses_T if loss_transform == 'log' else weights_T
    context = replace(
        context,
        task_weights=slopes_T[losses.labelled_T],
        alone=len(regularizers) == 1 and losses.extra is None,
        warn=_warn,
    )
    try:
        penalty, report = regularize(regularizers, losses, representation, context, full_report)
    except NonFinite as error:
        return replace(_without_backward(losses, views, context, last, error), weighted=weighted)
    rest = [term for term in (penalty, losses.extra) if term is not None]
    return replace(
        _without_backward(losses, views, context, last),
        weighted=weighted,
        objectives=[w * value for w, value in zip(weights_T, transformed, strict=True)],
        rest=sum(rest) if rest else None,
        log=losses.log | {f'weight/{task}': w for task, w in zip(losses.losses, weights_T, strict=True)} | report,
    )


def _warn(message: str) -> None:
    """A regulariser's warning, in the log of the run."""
    print_log(message, logger='current', level=logging.WARNING)


def regularize(
    regularizers: Sequence[Regularizer],
    losses: TaskLosses,
    representation,
    context: RegularizerContext,
    full_report: bool,
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """The sum of the regularisers' terms, and their diagnostics, both averaged over ranks in value.

    Args:
        regularizers: Those of the run; without any, or without a labelled task, the sum is None.
        losses: Of this forward pass.
        representation: Z, as the shared module returned it, of views.
        context: What the regularisers are told.
        full_report: Whether all diagnostics are wanted, or those alone that are always logged.

    Raises:
        NonFinite: If the sum is not finite.
        ValueError: For a diagnostic whose name mmengine would take for that of a loss.
    """
    active = losses.labelled()
    if not (regularizers and active):
        return None, {}
    terms, report = [], {}
    for regularizer in regularizers:
        terms += regularizer(active, representation, context).values()
        for key, value in regularizer.diagnostics.items():
            if 'loss' in key:
                raise ValueError(
                    f'MultiTaskOptimWrapper: {type(regularizer).__name__} names a diagnostic {key!r}, and mmengine '
                    'adds every logged value whose name contains "loss" to the objective; rename it'
                )
            if full_report or key in regularizer.always_logged:
                report[f'{regularizer.name}/{key}'] = value
    penalty = sum(terms)
    report = mean_over_ranks(dict(penalty=penalty.detach(), **report), losses.losses_T, context.process_group)
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
