"""Turns a model's loss dict into one scalar per task, equal on all ranks in value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmrepmtl.engine.sum_tensors import sum_tensors
from mmrepmtl.methods.aggregation import Aggregator
from mmrepmtl.methods.collectives import num_processes
from mmrepmtl.methods.regularizer import Regularizer
from mmrepmtl.methods.weighting import Weighting
from mmrepmtl.utils.agreement import NamedSum


@dataclass(frozen=True, eq=False)
class TaskLosses:
    """The losses that a model returned in one forward pass, in the order of the tasks.

    Attributes:
        losses: {task: scalar}: global (mean over ranks) in value, local in gradient, float32 or wider. They are never
            stacked, so that the backward of one does not run through the graph of the others.
        losses_T: Their values, detached, (T,).
        labelled_T: Which tasks have a label anywhere in the global batch, (T,) bool.
        extra: Sum of the loss terms that no task claims, global and local as ``losses``; None if there are none.
        log: Values for the log, detached and global, under names that mmengine does not add to the loss.
    """

    losses: dict[str, Tensor]
    losses_T: Tensor
    labelled_T: Tensor
    extra: Tensor | None
    log: dict[str, Tensor]

    def labelled(self) -> dict[str, Tensor]:
        """Returns {task: loss} of the tasks that any rank has a label for."""
        return {
            task: loss for (task, loss), yes in zip(self.losses.items(), self.labelled_T.tolist(), strict=True) if yes
        }


def resolve_prefixes(tasks: Sequence[str] | Mapping[str, str] | None, model: nn.Module) -> dict[str, str]:
    """Returns {task: prefix of its loss keys} of the setting ``tasks``, or of the model's own task names.

    Raises:
        ValueError: If there is no task, or a name would be mistaken for a loss by mmengine.
    """
    if tasks is None:
        tasks = getattr(model, 'tasks', None)
        if not tasks:
            raise ValueError(
                f'MultiTaskOptimWrapper: {type(model).__name__} does not name its tasks; set tasks=dict(TASK='
                "'PREFIX of its loss keys', ...), for example tasks=dict(semseg='decode.', depth='aux.')"
            )
    prefixes = dict(tasks) if isinstance(tasks, Mapping) else {task: f'{task}.' for task in tasks}
    for task in prefixes:
        if 'loss' in task:
            raise ValueError(
                f'MultiTaskOptimWrapper: the task name {task!r} contains "loss", and mmengine adds every key '
                'that does to the objective; rename the task'
            )
    return prefixes


def _mean(name: str, value: object) -> Tensor:
    """Returns the scalar of one entry, exactly as mmengine's ``parse_losses`` computes it."""
    parts = [value] if isinstance(value, Tensor) else value
    if isinstance(parts, (list, tuple)) and parts and all(isinstance(v, Tensor) for v in parts):
        for part in parts:
            if not part.is_floating_point():
                raise ValueError(
                    f'MultiTaskOptimWrapper: loss {name!r} is a tensor of {part.dtype}; a loss must be a real '
                    'floating-point number'
                )
            if not part.numel():
                raise ValueError(
                    f'MultiTaskOptimWrapper: loss {name!r} is an empty tensor, whose mean is no number; return a zero '
                    'that is connected to the graph (pred.sum() * 0) where there is nothing to learn from'
                )
        return sum_tensors(v.mean() for v in parts)
    raise ValueError(
        f'MultiTaskOptimWrapper: loss {name!r} is neither a tensor nor a list of tensors but {type(value).__name__}'
    )


def agreed_losses() -> NamedSum:
    """Makes the sum over ranks for :func:`collect`, for one model; it remembers which losses the ranks agreed on."""
    advice = (
        'Every rank has to return the same losses in each iteration; where it has no label, a zero that is connected '
        'to the graph, such as 0 * prediction.sum(), and PREFIXlabelled=0'
    )
    return NamedSum('MultiTaskOptimWrapper', 'losses', advice)


@dataclass
class _Claimed:
    """The entries of a loss dict: {task: {key: scalar}}, {task: flag}, losses of no task, and values for the log."""

    terms: dict[str, dict[str, Tensor]]
    flags: dict[str, Tensor | float]
    extra: dict[str, Tensor]
    passed: dict[str, Any]


def _claim(outputs: Mapping[str, Any], prefixes: Mapping[str, str], extra_losses: str) -> _Claimed:
    """Assigns each entry of a loss dict to its task."""
    claimed: dict[str, dict[str, Tensor]] = {task: {} for task in prefixes}
    flags: dict[str, Tensor | float] = {}
    extra: dict[str, Tensor] = {}
    passed: dict[str, Any] = {}
    for key, value in outputs.items():
        owners = [task for task, prefix in prefixes.items() if key.startswith(prefix)]
        owner = max(owners, key=lambda task: len(prefixes[task])) if owners else None
        if owner is not None and key == prefixes[owner] + 'labelled':
            flags[owner] = value
        elif 'loss' not in key:
            passed[key] = value
        elif owner is not None:
            claimed[owner][key] = _mean(key, value)
        else:
            extra[key] = _mean(key, value)
    for task, terms in claimed.items():
        if not terms:
            raise ValueError(
                f'MultiTaskOptimWrapper: the prefix {prefixes[task]!r} of task {task!r} matches no loss; the '
                f'model returned {sorted(outputs)}'
            )
    if extra and extra_losses == 'error':
        raise ValueError(
            f'MultiTaskOptimWrapper: no task claims the losses {sorted(extra)}; give them to a task through '
            f"`tasks` (now {dict(prefixes)}), or set extra_losses='add' to add them unweighted"
        )
    return _Claimed(claimed, flags, extra, passed)


def collect(
    outputs: Mapping[str, Any],
    prefixes: Mapping[str, str],
    extra_losses: str,
    agreed: NamedSum,
    facts: Mapping[str, str] | None = None,
) -> TaskLosses:
    """Groups the entries of a loss dict by task and reduces their values over ranks in one collective.

    Args:
        outputs: The loss dict of the model's ``forward(mode='loss')``. An entry ``PREFIXlabelled`` (0 or 1) says
            whether the task has a label; it has one in the global batch if any rank says so.
        prefixes: {task: prefix of its loss keys}; the longest prefix claims a key.
        extra_losses: Treatment of loss keys that no task claims: ``'error'`` or ``'add'``.
        agreed: The sum over ranks, from :func:`agreed_losses`.
        facts: {description: value} of everything else that has to be equal on all ranks; None: as in the last call.

    Raises:
        ValueError: If a prefix matches no loss, or keys are unclaimed and ``extra_losses`` is ``'error'``; on all ranks
            if it is so on one. If the ranks return different losses: on all, naming them.
    """
    agreed.facts = agreed.facts if facts is None else dict(facts)
    try:
        found = _claim(outputs, prefixes, extra_losses)
    except ValueError as error:
        agreed({}, error)  # raises it on all ranks
        raise
    claimed, flags, extra = found.terms, found.flags, found.extra
    terms = {key: value for task_terms in claimed.values() for key, value in task_terms.items()} | extra
    dtype = torch.promote_types(torch.float32, torch.stack([v.detach() for v in terms.values()]).dtype)
    local = {key: value.to(dtype) for key, value in terms.items()}
    like = next(iter(local.values())).detach()
    # No loss has such a name: those contain 'loss'.
    marks = {f'{task} labelled': (torch.as_tensor(flag) != 0).to(like) for task, flag in flags.items()}
    sums = agreed(local | marks)
    merged = {key: value + (sums[key] / num_processes() - value.detach()) for key, value in local.items()}

    losses = {task: sum_tensors(merged[key] for key in claimed[task]) for task in prefixes}
    losses_T = torch.stack([loss.detach() for loss in losses.values()])
    labelled_T = torch.stack([sums.get(f'{task} labelled', like.new_ones(())) > 0 for task in prefixes])
    log = dict(found.passed)
    for task, loss in zip(prefixes, losses_T, strict=True):
        log[f'raw/{task}'] = loss
    several = [key for task in prefixes for key in claimed[task] if len(claimed[task]) > 1]
    log |= {f'raw/{_without_loss(key)}': merged[key].detach() for key in (*several, *extra)}
    return TaskLosses(losses, losses_T, labelled_T, sum_tensors(merged[key] for key in extra) if extra else None, log)


def check_connected(losses: TaskLosses) -> None:
    """Raises ValueError for a loss that has a value and no graph: its task would never learn."""
    cut = [task for task, loss in losses.labelled().items() if not loss.requires_grad]
    values = dict(zip(losses.losses, losses.losses_T.tolist(), strict=True)) if cut else {}
    for task in cut:
        if values[task] != 0:
            raise ValueError(
                f'MultiTaskOptimWrapper: the loss of task {task!r} has the value {values[task]:g} and no gradient: it '
                'was computed under torch.no_grad(), from a detached tensor or from a number; compute it from the '
                'output of the shared module'
            )


class ZeroLosses:
    """The setting ``zero_loss``: a global loss of exactly 0 makes its task one without a label, or stays a loss.

    It acts if a method needs positive losses, and for UW, whose variance a batch without labels must not lower.
    With other methods a loss of 0 is a loss like any other: one that may be negative passes through 0 with a gradient.

    Args:
        mode: ``'unlabelled'`` or ``'error'``.
        methods: Weighting and aggregator; an entry may be None.
        regularizers: Those of the run.
        loss_transform: That of the run.
    """

    def __init__(
        self,
        mode: str,
        methods: Sequence[Weighting | Aggregator | None],
        regularizers: Sequence[Regularizer],
        loss_transform: str | None,
    ) -> None:
        own = any(method is not None and method.loss_transform == 'own' for method in methods)
        log = loss_transform == 'log' or any(r.needs_positive_losses for r in regularizers)
        self.acts = mode == 'unlabelled' and (own or log)
        self._warned: set[str] = set()

    def mark_unlabelled(self, losses: TaskLosses, iteration: int) -> TaskLosses:
        """Marks the tasks whose loss is 0 as unlabelled; equal on all ranks, because the values are."""
        if not self.acts:
            return losses
        zero_T = losses.labelled_T & (losses.losses_T == 0)
        for task, zero in zip(losses.losses, zero_T.tolist(), strict=True):
            if zero and task not in self._warned:
                self._warned.add(task)
                print_log(
                    f'MultiTaskOptimWrapper: the loss of task {task!r} is exactly 0 in iteration {iteration}; in such '
                    "batches the task counts as one without a label (zero_loss='unlabelled'; said once)",
                    logger='current',
                    level=30,
                )
        return replace(losses, labelled_T=losses.labelled_T & ~zero_T)


def _without_loss(key: str) -> str:
    """Takes the word out of a key that would make mmengine add it to the objective."""
    return key.replace('loss_', '').replace('loss', 'l')
