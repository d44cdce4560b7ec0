"""Makes the record of a step from the losses of one forward pass: weights, penalties, and the values for the log."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.distributed as dist
from mmengine.logging import print_log
from torch import Tensor

from mmrepmtl.engine.aliases import ProcessGroup, Representation
from mmrepmtl.engine.nonfinite import NonFinite, check_finite
from mmrepmtl.engine.sum_tensors import sum_tensors
from mmrepmtl.engine.task_losses import TaskLosses, check_connected
from mmrepmtl.methods.collectives import num_processes
from mmrepmtl.methods.regularizer import Regularizer, RegularizerContext
from mmrepmtl.methods.weighting import Weighting


@dataclass(frozen=True, eq=False)
class Step:
    """The record of one forward pass, from which its backward is run.

    Attributes:
        tasks: Names, in order.
        labelled_T: Which tasks have a label anywhere in the global batch, (T,) bool.
        views: The views of Z that the heads read.
        factor: 1 / number of micro-batches in the accumulation window.
        scale: The gradient scaler's scale; ``.grad`` is left multiplied by it.
        last: Whether the window ends here.
        weighted: The weighting's scalar, with the gradient of its learned weights.
        objectives: Each task's weighted, transformed loss; the weight is a constant.
        rest: Sum of the terms that belong to no task (penalties, unclaimed losses), or None. It has no graph in
            iterations that a regulariser leaves out.
        log: Values for the log, besides the objective.
        found: The loss or penalty that is not finite, or None; with one there is no backward.
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
    """Transforms the losses; tasks without a label get 0.

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
    """Returns the weighted objective and the weights (T,). Whether a step follows is not known yet.

    The weighting sees values only, so that its learned weights get the gradient of the global objective on every rank.
    """
    leaf_T = torch.stack([value.detach() for value in transformed]).requires_grad_()
    scalar = weighting(leaf_T, None if labelled_T.all() else labelled_T, advance=False)
    weights_T = torch.autograd.grad(scalar, leaf_T, retain_graph=True)[0]
    if not weighting.learned():
        scalar = scalar.detach()
    terms = (w * (value - value.detach()) for w, value in zip(weights_T, transformed, strict=True))
    return scalar + sum_tensors(terms), weights_T


def _without_backward(
    losses: TaskLosses,
    views: Sequence[Tensor],
    context: RegularizerContext,
    last: bool,
    found: NonFinite | None = None,
) -> Step:
    """Makes the record of a forward pass whose window makes no step: its loss is the plain sum, for the log."""
    return Step(
        tasks=tuple(losses.losses),
        labelled_T=losses.labelled_T,
        views=views,
        factor=context.backward_scale,
        scale=float(context.scale),
        last=last,
        weighted=sum_tensors(losses.losses.values()),
        objectives=(),
        rest=None,
        log=losses.log,
        found=found,
    )


def objective(
    losses: TaskLosses,
    views: Sequence[Tensor],
    representation: Representation,
    *,
    weighting: Weighting,
    regularizers: Sequence[Regularizer],
    loss_transform: str | None,
    context: RegularizerContext,
    last: bool,
    full_report: bool,
    skipped: bool,
) -> Step:
    """Makes the record of one forward pass. It changes nothing, except that methods may count their own calls.

    Args:
        losses: The losses of this forward pass.
        views: The views of Z that the heads read.
        representation: Z as a regulariser takes it, made of those views.
        weighting: The loss weighting.
        regularizers: Those of the run.
        loss_transform: ``'log'`` or None.
        context: The facts for the regularisers; what depends on the losses is filled in here.
        last: Whether the accumulation window ends with this forward pass.
        full_report: Whether all diagnostics are wanted.
        skipped: Whether the step of this window is skipped already, so that no method may see this pass.

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
        rest=sum_tensors(rest) if rest else None,
        log=losses.log | {f'weight/{task}': w for task, w in zip(losses.losses, weights_T, strict=True)} | report,
    )


def _warn(message: str) -> None:
    """A regulariser's warning, in the log of the run."""
    print_log(message, logger='current', level=logging.WARNING)


def regularize(
    regularizers: Sequence[Regularizer],
    losses: TaskLosses,
    representation: Representation,
    context: RegularizerContext,
    full_report: bool,
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Calls the regularisers; returns the sum of their terms and their diagnostics, in value averaged over ranks.

    Args:
        regularizers: Those of the run; without any, or without a labelled task, the sum is None.
        losses: The losses of this forward pass.
        representation: Z as a regulariser takes it, made of the views.
        context: The facts for the regularisers.
        full_report: Whether all diagnostics are wanted, or only those that are always logged.

    Raises:
        NonFinite: If the sum is not finite.
        ValueError: For a diagnostic whose name mmengine would take for that of a loss.
    """
    active = losses.labelled()
    if not (regularizers and active):
        return None, {}
    terms: list[Tensor] = []
    diagnostics: dict[str, float | Tensor] = {}
    for regularizer in regularizers:
        terms += regularizer(active, representation, context).values()
        for key, value in regularizer.diagnostics.items():
            if 'loss' in key:
                raise ValueError(
                    f'MultiTaskOptimWrapper: {type(regularizer).__name__} names a diagnostic {key!r}, and mmengine '
                    'adds every logged value whose name contains "loss" to the objective; rename it'
                )
            if full_report or key in regularizer.always_logged:
                diagnostics[f'{regularizer.name}/{key}'] = value
    # A regulariser may leave an iteration out by returning no term.
    penalty = sum_tensors(terms) if terms else losses.losses_T.new_zeros(())
    diagnostics = dict(penalty=penalty.detach(), **diagnostics)
    report = mean_over_ranks(diagnostics, losses.losses_T, context.process_group)
    if not torch.isfinite(report['penalty']):
        raise NonFinite('penalty', value=report['penalty'].item())
    return penalty + (report['penalty'] - penalty.detach()), report


def mean_over_ranks(report: Mapping[str, float | Tensor], like: Tensor, group: ProcessGroup) -> dict[str, Tensor]:
    """Averages named scalars over ranks in one collective; every rank must hold the same names.

    Args:
        report: {name: scalar}.
        like: A tensor of the dtype and device to reduce in.
        group: The processes.
    """
    values = like.new_tensor([float(value) for value in report.values()])
    if num_processes() > 1 and report:
        dist.all_reduce(values, group=group)
        values /= num_processes()
    return dict(zip(report, values, strict=True))
