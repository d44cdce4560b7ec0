"""Compares the processes of a run before they train together, and notes the place of each during the run."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmrepmtl.engine.aliases import Batch
from mmrepmtl.engine.rank_watch import set_place
from mmrepmtl.methods.collectives import num_processes
from mmrepmtl.registry import HOOKS
from mmrepmtl.utils.agreement import ranks

#: Relative difference that sums of the same weights may have, since the order of the additions may differ.
ROUNDING = 1e-6


@HOOKS.register_module()
class RanksHook(Hook):
    """Stops a distributed run whose ranks would not meet in every iteration, and says where each rank is.

    Before training all ranks compare their first iteration, the length of the training and of an epoch, and their
    parameters. A rank with fewer batches, or one that found no checkpoint to resume from, would leave the others
    waiting. After each epoch and validation they compare whether to stop: if one of them does, all do.

    Raises:
        ValueError: Before training, on all ranks, if they differ; names the difference and the ranks.
    """

    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        """Compares the ranks."""
        set_place('the start of the training')
        if num_processes() == 1:
            return
        everyone: list[dict[str, Any]] = [{}] * num_processes()
        dist.all_gather_object(everyone, run_facts(runner))
        for what in everyone[0]:
            by_rank = [found[what] for found in everyone]
            if not _equal(by_rank):
                raise ValueError(f'the ranks do not run the same training: {what}: {_listed(by_rank)}. {ADVICE[what]}')

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Batch = None) -> None:
        """Notes the iteration."""
        set_place(f'training iteration {runner.iter + 1}')

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Batch = None) -> None:
        """Notes the batch."""
        set_place(f'batch {batch_idx + 1} of the validation after training iteration {runner.iter}')

    def before_test_iter(self, runner: Runner, batch_idx: int, data_batch: Batch = None) -> None:
        """Notes the batch."""
        set_place(f'batch {batch_idx + 1} of the test')

    def after_train_epoch(self, runner: Runner) -> None:
        """Lets all ranks stop if one of them does."""
        set_place(f'the end of the epoch, after training iteration {runner.iter}')
        self._stop_together(runner)

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, float] | None = None) -> None:
        """Lets all ranks stop if one of them does."""
        set_place(f'the end of the validation after training iteration {runner.iter}')
        if runner.iter > 0:  # in a run that only validates, reading the train loop would build it
            self._stop_together(runner)

    def after_train(self, runner: Runner) -> None:
        """Notes the end."""
        set_place('the end of the training')

    def _stop_together(self, runner: Runner) -> None:
        if num_processes() == 1:
            return
        wanted = torch.zeros(num_processes())
        wanted[dist.get_rank()] = float(runner.train_loop.stop_training)
        all_reduce(wanted)
        stopping = [rank for rank, yes in enumerate(wanted.tolist()) if yes]
        if stopping and len(stopping) < len(wanted):
            runner.logger.warning(f'RanksHook: {ranks(stopping)} asked to stop the training, so all ranks stop')
        runner.train_loop.stop_training = bool(stopping)


#: {name of a fact that all ranks compare: advice if it differs}.
ADVICE = {
    'iterations so far': 'A resumed run reads its checkpoint on every rank: put the work directory where all see it',
    'length of the training': 'Start every process with the same config',
    'batches of an epoch': 'Give every rank as many: a sampler with round_up=True (DefaultSampler, EpochSampler), or '
    'drop_last=True',
    'trainable parameters': 'Build and freeze the same model on every rank',
    'sum of the weights': 'Load the same checkpoint on every rank: put it where all see it',
}


def run_facts(runner: Runner) -> dict[str, Any]:
    """Returns the facts that all ranks must have in common, {name in :data:`ADVICE`: value}."""
    loop = runner.train_loop
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    trainable = [(name, tuple(p.shape)) for name, p in model.named_parameters() if p.requires_grad]
    batches = len(loop.dataloader) if isinstance(loop, EpochBasedTrainLoop) else None
    with torch.no_grad():
        total = sum(float(p.double().abs().sum()) for p in model.parameters())
    return {
        'iterations so far': runner.iter,
        'length of the training': loop.max_iters,
        'batches of an epoch': batches,
        'trainable parameters': f'{len(trainable)} tensors, {hash_of(trainable)}',
        'sum of the weights': total,
    }


def hash_of(value: object) -> str:
    """Returns a short text that differs for different values."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:8]


def _equal(by_rank: Sequence[Any]) -> bool:
    if isinstance(by_rank[0], float):
        return bool(max(by_rank) - min(by_rank) <= ROUNDING * max(abs(value) for value in by_rank))
    return all(value == by_rank[0] for value in by_rank)


def _listed(by_rank: Sequence[Any]) -> str:
    where: dict[str, list[int]] = {}
    for rank, value in enumerate(by_rank):
        where.setdefault(str(value), []).append(rank)
    return ', '.join(f'{value} on {ranks(numbers)}' for value, numbers in where.items())
