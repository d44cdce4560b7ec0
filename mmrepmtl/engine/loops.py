"""Training loops that go on at the place of a checkpoint: between two epochs, inside one, or before a validation."""

import logging
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from mmrepmtl.datasets.positions import position_of, positioned_loader


class _ExactLoop(BaseLoop):
    """The base of both loops, which replace a loop that mmengine built.

    Args:
        loop: mmengine's loop, before it has run.
    """

    # Both loops of mmengine have these; their base does not declare them.
    val_begin: int
    val_interval: int
    _iter: int

    def __init__(self, loop: EpochBasedTrainLoop | IterBasedTrainLoop) -> None:
        self.__dict__.update(vars(loop))
        self.dataloader = positioned_loader(loop.dataloader, self.runner.seed)

    @abstractmethod
    def _between_epochs(self) -> bool:
        """Whether the loop is at a place where a validation may be due."""

    @abstractmethod
    def _count(self) -> int:
        """The epochs or iterations that are done, in the unit of the loop."""

    @abstractmethod
    def _ended(self) -> bool:
        """Whether all epochs or iterations are done."""

    @abstractmethod
    def _trained(self) -> bool:
        """Whether all batches are done; the last epoch may not be counted yet."""

    @abstractmethod
    def _where(self) -> str:
        """The place of the loop, in words."""

    def _before_training(self) -> None:
        """Calls the hooks before the training, then runs the validation in which the run was killed, if any."""
        put_checkpoints_last(self.runner)
        self.runner.call_hook('before_train')
        if self._iter == 0:
            return
        # This is done again before the first batch: a validation and hooks draw random numbers in between.
        self.runner.call_hook('restore_random_states')
        validated = self._validated()
        unfinished = self._between_epochs() and self._validation_due() and not validated
        nothing_left = self._trained() and not unfinished and (self._between_epochs() or validated)
        if not nothing_left:
            for hook in self.runner.hooks:
                if isinstance(hook, CheckpointHook) and hook.last_ckpt is None:
                    # Without it mmengine does not write the best score of the next validation into the checkpoint.
                    hook.last_ckpt = self.runner.message_hub.runtime_info.get('last_ckpt')
        if unfinished:
            self.runner.logger.info(f'the validation after {self._where()} was not finished: it is done now')
            self.runner.val_loop.run()
        if self._trained():
            left = 'nothing is left to do' if nothing_left else 'only the last validation was left'
            self.runner.logger.info(f'the run has ended with iteration {self._iter}: {left}')

    def _validated(self) -> bool:
        """Whether every hook that acts on validations has seen the one of this iteration."""
        hooks = [hook for hook in self.runner.hooks if hasattr(hook, 'has_validated')]
        return all([hook.has_validated(self.runner) for hook in hooks])

    def _validate_if_due(self) -> None:
        if self._validation_due():
            self.runner.val_loop.run()

    def _validation_due(self) -> bool:
        if self.runner.val_loop is None:
            return False
        self._decide_current_val_interval()
        count = self._count()
        return count >= self.val_begin and (count % self.val_interval == 0 or self._ended())


class ExactEpochLoop(_ExactLoop, EpochBasedTrainLoop):
    """``EpochBasedTrainLoop`` that goes on inside an epoch, and finishes a validation that was interrupted.

    Attributes:
        batches_done: Batches of the current epoch that are done. It includes the current one in ``after_train_iter``.
    """

    _epoch: int
    _max_epochs: int

    def __init__(self, loop: EpochBasedTrainLoop) -> None:
        super().__init__(loop)
        self.batches_done = 0

    def run(self) -> Any:
        """Launches training, or goes on with it."""
        self._find_place()
        self._before_training()
        while self._epoch < self._max_epochs and not self.stop_training:
            # A checkpoint of the last iteration of an epoch is older than what follows the epoch.
            over = self.batches_done == len(self.dataloader) and self._validated()
            self.run_epoch()
            if not over:
                self._validate_if_due()
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_epoch(self) -> None:
        """Runs one epoch, or what is left of it."""
        done = self.batches_done
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        batches = _batches_from(self.dataloader, self._epoch, done)
        if done:
            self.runner.logger.info(f'epoch {self._epoch + 1} goes on after {done} of {len(self.dataloader)} batches')
            self.runner.call_hook('restore_random_states')
        for idx, data_batch in enumerate(batches, start=done):
            self.batches_done = idx + 1
            self.run_iter(idx, data_batch)
        self.batches_done = 0
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def _find_place(self) -> None:
        """Computes the place in the epoch from the counters; ResumeHook knows it better if the checkpoint holds it."""
        done = self._iter - self._epoch * len(self.dataloader)
        # A number out of range means that the epochs had another length.
        self.batches_done = done if 0 < done <= len(self.dataloader) and self._epoch < self._max_epochs else 0

    def _between_epochs(self) -> bool:
        return self.batches_done == 0 and self._epoch > 0

    def _count(self) -> int:
        return self._epoch

    def _ended(self) -> bool:
        return self._epoch >= self._max_epochs

    def _trained(self) -> bool:
        return self._epoch + (self.batches_done == len(self.dataloader)) >= self._max_epochs

    def _where(self) -> str:
        return f'epoch {self._epoch}'


class ExactIterLoop(_ExactLoop, IterBasedTrainLoop):
    """``IterBasedTrainLoop`` that finds its place in the data, and finishes a validation that was interrupted."""

    _max_iters: int

    def __init__(self, loop: IterBasedTrainLoop) -> None:
        super().__init__(loop)
        self.dataloader_iterator = BatchStream(self.dataloader)

    def run(self) -> Any:
        """Launches training, or goes on with it."""
        self._before_training()
        if self._epoch > 0 and self._ended():  # the checkpoint of the end of the one epoch
            self.runner.call_hook('after_train')
            return self.runner.model
        self.runner.call_hook('before_train_epoch')
        if 0 < self._iter < self._max_iters:
            self.dataloader_iterator.skip(self._iter)
            self.runner.call_hook('restore_random_states')
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
            self._validate_if_due()
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    def _between_epochs(self) -> bool:
        return True

    def _count(self) -> int:
        return self._iter

    def _ended(self) -> bool:
        return self._iter >= self._max_iters

    _trained = _ended

    def _where(self) -> str:
        return f'iteration {self._iter}'


class BatchStream:
    """The batches of a loader, pass after pass without end.

    Args:
        loader: The loader; with an endless sampler there is one pass only.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader, self._pass = loader, 0
        self._iterator: Iterator[Any] | None = None

    def __iter__(self) -> 'BatchStream':
        return self

    def __next__(self) -> Any:
        iterator = self._begin(0) if self._iterator is None else self._iterator  # a stream's has no length, so no truth
        try:
            return next(iterator)
        except StopIteration:
            self._pass += 1
        try:
            return next(self._begin(0))
        except StopIteration:
            raise ValueError('the training data loader has no batches: a data set smaller than one batch?') from None

    def skip(self, batches: int) -> None:
        """Moves to the place after so many batches since the start of the stream."""
        position = position_of(self._loader)
        if position is not None and position.begin(0, batches) == batches:
            self._iterator = iter(self._loader)
            return
        self._pass, left = divmod(batches, len(self._loader))
        self._begin(left)

    def _begin(self, batches: int) -> Iterator[Any]:
        """Begins the current pass after so many batches."""
        if self._pass:
            _set_epoch(self._loader, self._pass)
        self._iterator = _batches_from(self._loader, self._pass, batches)
        return self._iterator


def _set_epoch(loader: DataLoader[Any], epoch: int) -> None:
    """Tells the sampler the epoch; the sampler is found as mmengine's own hook finds it."""
    samplers: tuple[Any, ...] = (loader.sampler, getattr(loader.batch_sampler, 'sampler', None))
    for sampler in samplers:
        if hasattr(sampler, 'set_epoch'):
            sampler.set_epoch(epoch)
            return


def _batches_from(loader: DataLoader[Any], number: int, batches: int) -> Iterator[Any]:
    """Returns an iterator over the pass ``number`` that begins after so many batches."""
    position = position_of(loader)
    if position is not None:
        position.begin(number, batches)
        return iter(loader)
    iterator = iter(loader)
    if batches:
        print_log(
            f'{batches} batches are loaded and left out: this data loader cannot begin in the middle',
            logger='current',
            level=logging.WARNING,
        )
        for _ in range(batches):
            next(iterator, None)
    return iterator


def use_exact_loop(runner: Runner) -> None:
    """Replaces mmengine's training loop by one of the loops above, in ``before_run``; a loop class of a user's stays.

    mmengine builds its loops by name, or without a registry if a config has ``by_epoch``. Only the built loop is common
    to all configs, ours and mmseg's.
    """
    kinds: dict[type, Any] = {EpochBasedTrainLoop: ExactEpochLoop, IterBasedTrainLoop: ExactIterLoop}
    loop = runner._train_loop  # the property would build the training loop of a run that only tests
    if type(loop) in kinds:
        runner._train_loop = kinds[type(loop)](loop)


def use_seed(runner: Runner, seed: int) -> None:
    """Gives a run another seed before a loop of mmengine begins, and builds its data loader a second time.

    Samplers and workers keep the seed that they are built with. A data loader that the user has built stays.
    """
    runner._randomness_cfg.update(seed=seed)
    runner.set_randomness(**runner._randomness_cfg)
    loop, loader = runner._train_loop, runner._train_dataloader
    if type(loop) in (EpochBasedTrainLoop, IterBasedTrainLoop) and isinstance(loader, dict):
        differs = runner._randomness_cfg.get('diff_rank_seed', False)
        loop.dataloader = runner.build_dataloader(loader, seed=runner.seed, diff_rank_seed=differs)


def put_checkpoints_last(runner: Runner) -> None:
    """Moves the hooks that save checkpoints behind all others, whatever their priority.

    Otherwise a checkpoint might be saved while another hook, such as one that swaps or averages weights, is half done.
    """
    hooks = runner.hooks
    saving = [hook for hook in hooks if isinstance(hook, CheckpointHook)]
    if saving and hooks[-len(saving) :] != saving:
        late = [hook for hook in hooks[hooks.index(saving[0]) :] if hook not in saving]
        names = ', '.join(type(hook).__name__ for hook in late)
        runner.logger.info(f'checkpoints are saved after {names}, whose priority is lower')
        hooks[:] = [hook for hook in hooks if hook not in saving] + saving
