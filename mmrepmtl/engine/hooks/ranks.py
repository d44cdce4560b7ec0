"""Several processes: what must be equal before they train together, and what each is at while it does."""

import hashlib

import torch
import torch.distributed as dist
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop

from mmrepmtl.engine.rank_watch import now_at
from mmrepmtl.methods.collectives import num_processes
from mmrepmtl.registry import HOOKS
from mmrepmtl.utils.agreement import ranks

#: Sums of weights that were read from one file are equal but for the order of the additions.
ROUNDING = 1e-6


@HOOKS.register_module()
class RanksHook(Hook):
    """Stops a distributed run whose ranks would not meet in every iteration, and says where each rank is.

    Before training all ranks compare where they start, how long they train, how many batches an epoch has and what they
    train: a rank with fewer batches, or one that found no checkpoint to resume from, would leave the others waiting.
    After each epoch and validation they compare whether to stop: if one of them does, all do.

    Raises:
        ValueError: Before training, on all ranks, naming what differs and where.
    """

    priority = 'LOWEST'

    def before_train(self, runner) -> None:
        """Compares the ranks."""
        now_at('the start of the training')
        if num_processes() == 1:
            return
        everyone: list = [None] * num_processes()
        dist.all_gather_object(everyone, facts(runner))
        for what in everyone[0]:
            by_rank = [found[what] for found in everyone]
            if not _equal(by_rank):
                raise ValueError(f'the ranks do not run the same training: {what}: {_listed(by_rank)}. {ADVICE[what]}')

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        """Notes the iteration."""
        now_at(f'training iteration {runner.iter + 1}')

    def before_val_iter(self, runner, batch_idx, data_batch=None) -> None:
        """Notes the batch."""
        now_at(f'batch {batch_idx + 1} of the validation after training iteration {runner.iter}')

    def before_test_iter(self, runner, batch_idx, data_batch=None) -> None:
        """Notes the batch."""
        now_at(f'batch {batch_idx + 1} of the test')

    def after_train_epoch(self, runner) -> None:
        """Lets all ranks stop if one of them does."""
        now_at(f'the end of the epoch, after training iteration {runner.iter}')
        self._stop_together(runner)

    def after_val_epoch(self, runner, metrics=None) -> None:
        """Lets all ranks stop if one of them does."""
        now_at(f'the end of the validation after training iteration {runner.iter}')
        if runner.iter > 0:  # else nothing is trained, and asking for the loop would build it
            self._stop_together(runner)

    def after_train(self, runner) -> None:
        """Notes the end."""
        now_at('the end of the training')

    def _stop_together(self, runner) -> None:
        if num_processes() == 1:
            return
        wanted = torch.zeros(num_processes())
        wanted[dist.get_rank()] = float(runner.train_loop.stop_training)
        all_reduce(wanted)
        stopping = [rank for rank, yes in enumerate(wanted.tolist()) if yes]
        if stopping and len(stopping) < len(wanted):
            runner.logger.warning(f'RanksHook: {ranks(stopping)} asked to stop the training, so all ranks stop')
        runner.train_loop.stop_training = bool(stopping)


#: What is compared, and what to do if it differs.
ADVICE = {
    'iterations so far': 'A resumed run reads its checkpoint on every rank: put the work directory where all see it',
    'length of the training': 'Start every process with the same config',
    'batches of an epoch': 'Give every rank as many: a sampler with round_up=True (DefaultSampler, EpochSampler), or '
    'drop_last=True',
    'trainable parameters': 'Build and freeze the same model on every rank',
    'sum of the weights': 'Load the same checkpoint on every rank: put it where all see it',
}


def facts(runner) -> dict:
    """What all ranks must have in common, {name in :data:`ADVICE`: value}."""
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


def hash_of(value) -> str:
    """A short text that differs for different values."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:8]


def _equal(by_rank: list) -> bool:
    if isinstance(by_rank[0], float):
        return max(by_rank) - min(by_rank) <= ROUNDING * max(abs(value) for value in by_rank)
    return all(value == by_rank[0] for value in by_rank)


def _listed(by_rank: list) -> str:
    where: dict[str, list[int]] = {}
    for rank, value in enumerate(by_rank):
        where.setdefault(str(value), []).append(rank)
    return ', '.join(f'{value} on {ranks(numbers)}' for value, numbers in where.items())
