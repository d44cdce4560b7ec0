"""Makes a resumed run equal an uninterrupted one: place in the epoch, random states and open window of every rank."""

import json
from pathlib import Path

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, EpochBasedTrainLoop, Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmrepmtl.engine.aliases import Batch, Outputs, State
from mmrepmtl.engine.last_checkpoint import find_checkpoint
from mmrepmtl.engine.loops import ExactEpochLoop, ExactIterLoop, use_exact_loop, use_seed
from mmrepmtl.engine.random_state import random_state, set_random_state
from mmrepmtl.engine.resumable import OUTLINE, check_complete, check_fits, outline
from mmrepmtl.engine.run_settings import SETTINGS, check_order, compare_settings, run_settings
from mmrepmtl.engine.window import load_window_state, window_state
from mmrepmtl.methods.collectives import num_processes
from mmrepmtl.registry import HOOKS
from mmrepmtl.utils.files import whole_file

#: File in the work directory that says which validations of a run are over.
PROGRESS_FILE = 'progress.json'


def _check_checkpoint(runner: Runner, checkpoint: State) -> None:
    """Refuses a checkpoint that cannot be resumed; logs how this run differs from the one that wrote it."""
    name = runner._load_from or 'the checkpoint'
    check_complete(checkpoint, name)
    # mmengine would evaluate this text, to find the number of GPUs that its oldest versions wrote there.
    checkpoint['meta'].pop('config', None)
    sentences = compare_settings(runner, checkpoint, name)
    check_fits(runner, checkpoint, name)
    check_order(runner, checkpoint, name)
    for sentence in sentences:
        runner.logger.warning(f'ResumeHook: {sentence}')


def seed_sentence(own: int | None, seed: int) -> str:
    """Says that a resumed run has the seed of the checkpoint, not that of its config.

    Args:
        own: Seed of the config; None if it has none and the run drew one.
        seed: Seed of the checkpoint.
    """
    return f"seed is {'not set' if own is None else own} now and was {seed}; the checkpoint's goes on"


def _plain_buffer(buffer: HistoryBuffer) -> State:
    log, count = buffer.data
    return dict(log=torch.as_tensor(log.astype(float)), count=torch.as_tensor(count), max_length=buffer.max_length)


def _statistics(model: nn.Module) -> dict[str, Tensor]:
    """Returns BatchNorm's buffers, which differ between ranks; mmengine saves those of the first rank only."""
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)]
    return {f'{name}.{key}': buffer for name, layer in layers for key, buffer in layer.named_buffers()}


@HOOKS.register_module()
class ResumeHook(Hook):
    """Makes checkpoints from which a run can be resumed exactly, and which can be loaded without running code.

    * It replaces mmengine's loop by one that goes on at any batch (``engine/loops.py``).
    * It saves and restores the random states of every rank, and the gradients of an accumulation window that is not
      finished; mmengine saves neither. With several processes they are gathered at the end of each epoch, before each
      validation and after the iterations at which a checkpoint is due. Code that saves a checkpoint at another time
      calls :meth:`gather` on every rank before. Validation does not advance the random states, so that the number of
      validations does not change the training.
    * ``progress.json`` says which validations are over. A validation in which the run was killed is repeated.
    * mmengine pickles its log buffers with bound methods, which ``torch.load`` refuses as code. Here they become plain
      tensors, and buffers again on loading.
    * The settings of the run go into the checkpoint as JSON. A resumed run logs each difference with both values. It
      refuses a checkpoint without optimizer state, with other weights or of another kind of loop.

    Attributes:
        has_checkpoint_seed: Whether the runner was built with the seed of the checkpoint; if not, the hook reads the
            seed from the file.
    """

    priority = 'LOW'

    def __init__(self) -> None:
        self._states: list[State] | None = None
        self._gathered_at: int | None = None
        self._restore: State | None = None
        self._position: State | None = None
        self._before_val: State | None = None
        self._validated = 0
        self.has_checkpoint_seed = False

    def before_run(self, runner: Runner) -> None:
        """Finds the checkpoint of a Runner that resumes, sets its seed, and replaces mmengine's loop by an exact one.

        mmengine would accept any name in ``last_checkpoint``, and would set the seed after the samplers are built.
        """
        if runner._resume:
            self._find_checkpoint(runner)
            if runner._load_from is not None and not self.has_checkpoint_seed:
                self._use_checkpoint_seed(runner)
        use_exact_loop(runner)

    def _find_checkpoint(self, runner: Runner) -> None:
        if runner._load_from is not None:
            return
        notes: list[str] = []
        cfg = runner.cfg if runner.cfg.get('work_dir') else Config(dict(work_dir=runner.work_dir))
        found = find_checkpoint(cfg, notes=notes)
        if found is None:
            notes.append(f'there is no checkpoint in {runner.work_dir}, so the run starts anew')
        else:
            runner._load_from = str(found)
        for note in notes:
            runner.logger.warning(f'ResumeHook: {note}')

    def _use_checkpoint_seed(self, runner: Runner) -> None:
        meta = CheckpointLoader.load_checkpoint(runner._load_from, map_location='cpu').get('meta')
        seed, own = meta.get('seed') if isinstance(meta, dict) else None, runner._randomness_cfg.get('seed')
        if isinstance(seed, int) and not isinstance(seed, bool) and seed != own:
            use_seed(runner, seed)
            runner.logger.warning(f'ResumeHook: {seed_sentence(own, seed)}')

    def after_load_checkpoint(self, runner: Runner, checkpoint: State) -> None:
        """Restores the log buffers; if training is resumed, keeps the other states until it starts."""
        if runner._resume:
            _check_checkpoint(runner, checkpoint)
        scalars = checkpoint.get('message_hub', {}).get('log_scalars', {})
        scalars.update(
            {
                key: HistoryBuffer(value['log'].cpu().numpy(), value['count'].cpu().numpy(), value['max_length'])
                for key, value in scalars.items()
                if isinstance(value, dict)
            }
        )
        states = checkpoint.get('random_states')
        if not runner._resume:
            return
        self._position = checkpoint.get('position')
        if states is None:
            runner.logger.warning(
                'ResumeHook: the checkpoint holds no random states; the resumed run will differ from an '
                'uninterrupted one wherever it draws random numbers (dropout)'
            )
        elif len(states) != num_processes():
            runner.logger.warning(
                f'ResumeHook: the checkpoint holds the random states of {len(states)} processes, not of '
                f'{num_processes()}; they are not restored'
            )
        else:
            self._restore = states[runner.rank]
            self._states, self._gathered_at = states, checkpoint['meta']['iter']

    def before_train(self, runner: Runner) -> None:
        """Finds the place in the epoch and restores the states: building the run has drawn random numbers.

        Raises:
            ValueError: If the checkpoint was saved inside an epoch that this run cannot go on in.
        """
        self._read_progress(runner)
        self._find_place(runner)
        if self._restore is not None:
            load_window_state(runner.optim_wrapper, self._restore.get('window', {}))
            for name, value in _statistics(runner.model).items():
                if name in self._restore.get('statistics', {}):
                    value.copy_(self._restore['statistics'][name])
        self.restore_random_states(runner)
        if not isinstance(runner.train_loop, ExactEpochLoop | ExactIterLoop):
            self._restore = None

    def restore_random_states(self, runner: Runner) -> None:
        """Restores the random states of a resumed run; the loop calls it directly before the first batch."""
        if self._restore is not None:
            set_random_state(self._restore)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Batch = None) -> None:
        """Drops the states that the run was resumed with: they have been restored."""
        self._restore = None

    def after_train_epoch(self, runner: Runner) -> None:
        """Gathers the states for the checkpoint of this epoch."""
        for hook in runner.hooks:
            if isinstance(hook, EMAHook) and not hook.ema_model.update_buffers:
                # SyncBuffersHook has averaged the model's buffers over the ranks since the last update of the EMA.
                for kept, buffer in zip(hook.ema_model.module.buffers(), hook.src_model.buffers(), strict=True):
                    kept.copy_(buffer)
        self.gather(runner, runner.iter)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Batch = None, outputs: Outputs = None
    ) -> None:
        """Gathers the states if a checkpoint follows this iteration."""
        due = any(
            self.every_n_train_iters(runner, hook.interval) or runner.iter + 1 == runner.max_iters
            for hook in runner.hooks
            if isinstance(hook, CheckpointHook) and not hook.by_epoch
        )
        if due:
            self.gather(runner, runner.iter + 1)

    def gather(self, runner: Runner, iterations: int) -> None:
        """Collects the states of all ranks for a checkpoint after so many iterations; call it on every rank.

        A single process has nothing to gather: it reads its states when a checkpoint is saved.
        """
        if num_processes() == 1:
            return
        mine = self._state_now(runner)
        mine['statistics'] = {name: value.cpu() for name, value in _statistics(runner.model).items()}
        self._states, self._gathered_at = [{}] * num_processes(), iterations
        dist.all_gather_object(self._states, mine)

    def _state_now(self, runner: Runner) -> State:
        state = self._before_val or random_state()
        window = window_state(runner.optim_wrapper)
        return state | dict(window=window) if window else dict(state)

    def before_save_checkpoint(self, runner: Runner, checkpoint: State) -> None:
        """Adds the place in the epoch, the states and the settings of the run; writes the log buffers as tensors."""
        checkpoint[SETTINGS] = json.dumps(run_settings(runner))
        if 'optimizer' in checkpoint:
            checkpoint[OUTLINE] = json.dumps(outline(checkpoint['optimizer']))
        scalars = checkpoint['message_hub']['log_scalars']
        checkpoint['message_hub']['log_scalars'] = {key: _plain_buffer(buffer) for key, buffer in scalars.items()}
        loop = runner.train_loop
        if isinstance(loop, ExactEpochLoop):
            checkpoint['position'] = dict(batches=loop.batches_done, epoch_length=len(loop.dataloader))
        if num_processes() == 1:
            checkpoint['random_states'] = [self._state_now(runner)]
        elif self._states is not None and self._gathered_at == checkpoint['meta']['iter']:
            checkpoint['random_states'] = self._states
        else:
            runner.logger.warning(
                'ResumeHook: this checkpoint has no random states, since they were not gathered in this iteration; a '
                'run resumed from it is not exact. A hook that saves checkpoints calls ResumeHook.gather on every rank'
            )

    def before_val(self, runner: Runner) -> None:
        """Saves the random states for the time of a validation."""
        if runner.iter > 0:
            self.gather(runner, runner.iter)
        self._before_val = random_state()

    def after_val(self, runner: Runner) -> None:
        """Restores the random states, and notes that the validation is over."""
        if self._before_val is not None:
            set_random_state(self._before_val)
            self._before_val = None
        if runner.iter > 0:
            self._validated = runner.iter
            if is_main_process():
                self._write_progress(runner)

    def has_validated(self, runner: Runner) -> bool:
        """Whether the validation of this iteration, if there was one, is over."""
        return self._validated >= int(runner.iter)

    def _read_progress(self, runner: Runner) -> None:
        file, found = Path(runner.work_dir, PROGRESS_FILE), [0]
        if runner.iter == 0:
            self._validated = 0
            if is_main_process():
                file.unlink(missing_ok=True)
            return
        if is_main_process() and file.is_file():
            try:
                found = [int(json.loads(file.read_text(encoding='utf-8'))['validated'])]
            except (ValueError, TypeError, KeyError):
                runner.logger.warning(
                    f'{file} is damaged: the validation of this iteration, if one is due, is repeated'
                )
        broadcast_object_list(found)
        self._validated = min(found[0], runner.iter)
        if self._validated < found[0] and is_main_process():
            # Later validations belong to a later state of the run, which this one does not go on from.
            self._write_progress(runner)

    def _write_progress(self, runner: Runner) -> None:
        with whole_file(Path(runner.work_dir, PROGRESS_FILE)) as file:
            file.write(json.dumps(dict(validated=self._validated)).encode())

    def _find_place(self, runner: Runner) -> None:
        position, self._position = self._position, None
        if position is None:
            return
        loop, batches, then = runner.train_loop, position['batches'], position['epoch_length']
        if not isinstance(loop, EpochBasedTrainLoop):
            return
        now = len(loop.dataloader)
        if batches and then != now:
            raise ValueError(
                f'the checkpoint was saved after {batches} of the {then} batches of epoch {runner.epoch + 1}, and an '
                f'epoch has {now} batches now: with other data or another batch size a run can only go on from the end '
                'of an epoch. Resume from such a checkpoint, or start anew with load_from'
            )
        if isinstance(loop, ExactEpochLoop):
            loop.batches_done = batches
        elif batches:
            raise ValueError(
                f'the checkpoint was saved after {batches} of the {then} batches of epoch {runner.epoch + 1}, and '
                f'{type(loop).__name__} repeats an epoch from its beginning: resume from the end of an epoch, or use '
                'EpochBasedTrainLoop'
            )
