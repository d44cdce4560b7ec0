"""Saves checkpoints so that the old one stays until the new one is whole."""

import os
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook as _CheckpointHook
from mmengine.runner import Runner

from mmrepmtl.engine.aliases import State
from mmrepmtl.engine.last_checkpoint import INTERRUPTED, LAST_CHECKPOINT
from mmrepmtl.registry import HOOKS
from mmrepmtl.utils.files import sweep_temporary, sync_folder, whole_file
from mmrepmtl.utils.folders import check_writable


# In mmengine's own registry, so that configs of any scope (mmseg's too) get this class by the plain name.
@HOOKS.register_module(force=True)
class CheckpointHook(_CheckpointHook):
    """mmengine's hook with all its arguments, in an order that loses nothing if the run is killed at any moment.

    A checkpoint is written under a temporary name and renamed when it is whole. Then ``last_checkpoint`` is written in
    the same way. Only then older checkpoints are deleted, so ``max_keep_ckpts=N`` needs room for N + 1. Leftovers of
    killed runs are removed at the start. A copied or moved run looks in its own folder for the files that it remembers.

    Raises:
        ValueError: At the start, if the folder cannot be written.
    """

    saved_iter: int | None = None
    """Iterations that the newest checkpoint holds from which a run can be resumed."""

    keep_ckpt_ids: deque[int]

    def before_train(self, runner: Runner) -> None:
        """Finds the folder, removes leftovers there and in the work directory."""
        super().before_train(runner)
        if self.max_keep_ckpts > 0:
            # One more than max_keep_ckpts while a new one is written.
            self.keep_ckpt_ids = deque(self.keep_ckpt_ids)
        self._use_own_best(runner)
        own = map(os.path.abspath, (runner.work_dir, str(self.out_dir)))
        if runner.iter > 0 and runner._load_from and os.path.dirname(os.path.abspath(runner._load_from)) in own:
            # A repeated validation may be interrupted too: --resume finds this file again.
            self.saved_iter = runner.iter
        if not is_main_process():
            return
        for folder in {str(runner.work_dir), str(self.out_dir)}:
            if '://' in folder:
                continue
            check_writable(folder, 'the folder of the checkpoints')
            for file in sweep_temporary(folder):
                runner.logger.info(f'{file} was left by a killed run and is removed')

    def _use_own_best(self, runner: Runner) -> None:
        """Makes a copied run use the best checkpoints in its own folder, not those of the original."""
        if self.save_best is None:
            return
        for indicator, path in self._best_paths().items():
            if not path or Path(path).parent.resolve() == Path(self.out_dir).resolve():
                continue
            own = self.file_backend.join_path(self.out_dir, Path(path).name)
            if not self.file_backend.exists(own):
                runner.logger.warning(f'the best checkpoint so far, {path}, is not in {self.out_dir} and is left alone')
                own = None
            self._set_best(indicator, own)
            key = 'best_ckpt' if len(self.key_indicators) == 1 else f'best_ckpt_{indicator}'
            runner.message_hub.update_info(key, own)

    def _best_paths(self) -> dict[str, str | None]:
        if len(self.key_indicators) == 1:
            return {self.key_indicators[0]: self.best_ckpt_path}
        return dict(self.best_ckpt_path_dict)

    def _set_best(self, indicator: str, path: str | None) -> None:
        if len(self.key_indicators) == 1:
            self.best_ckpt_path = path
        else:
            self.best_ckpt_path_dict[indicator] = path

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: State) -> None:
        if self.max_keep_ckpts > 0:
            if step in self.keep_ckpt_ids:  # mmengine saves it again, with the best score
                self.keep_ckpt_ids.remove(step)
            self.keep_ckpt_ids.append(step)
            # The list has the checkpoint to be deleted too: if the run is killed before, a resumed run deletes it.
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self._write(
            runner,
            self.filename_tmpl.format(step),
            meta,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            by_epoch=self.by_epoch,
            **self.args,
        )
        while len(getattr(self, 'keep_ckpt_ids', ())) > self.max_keep_ckpts > 0:
            self._remove(self.filename_tmpl.format(self.keep_ckpt_ids.popleft()))
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self._remove(INTERRUPTED)

    def save_interrupted(self, runner: Runner, meta: State) -> str:
        """Saves a checkpoint between two that are due; it replaces an earlier one of this kind.

        Args:
            runner: The runner.
            meta: Its ``epoch`` and ``iter``.

        Returns:
            The file.
        """
        return self._write(runner, INTERRUPTED, meta, save_optimizer=True, save_param_scheduler=True, by_epoch=False)

    def _write(self, runner: Runner, name: str, meta: State, **options: Any) -> str:
        """Saves a checkpoint and writes its path to ``last_checkpoint``; returns the path."""
        self.last_ckpt = str(self.file_backend.join_path(self.out_dir, name))
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        options |= dict(backend_args=self.backend_args)
        runner.save_checkpoint(self.out_dir, name, self.file_client_args, meta=meta, **options)
        if options['save_optimizer'] and options['save_param_scheduler']:
            self.saved_iter = meta['iter']
        if is_main_process():
            name_last(runner.work_dir, self.last_ckpt)
        return self.last_ckpt

    def _remove(self, name: str) -> None:
        if not is_main_process():
            return
        path = self.file_backend.join_path(self.out_dir, name)
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):  # a sharded checkpoint is a folder
            self.file_backend.rmtree(path)

    def _save_best_checkpoint(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        """Deletes the best checkpoint so far only when the better one, and the checkpoint that names it, are whole."""
        if not self.save_best:
            return
        if 'auto' in self.key_indicators:
            self._init_rule(self.rules, [next(iter(metrics))])
        before = self._best_paths()
        for indicator in before:  # without this mmengine deletes the old one first
            self._set_best(indicator, None)
        super()._save_best_checkpoint(runner, metrics)
        for indicator, path in self._best_paths().items():
            old = before.get(indicator)
            if path is None:
                self._set_best(indicator, old)
            elif old and old != path:
                self._remove(Path(old).name)
                runner.logger.info(f'The previous best checkpoint {old} is removed')


def name_last(work_dir: str | Path, checkpoint: str) -> None:
    """Writes the path of the checkpoint that a run resumes from to ``last_checkpoint`` of the work directory."""
    with whole_file(Path(work_dir, LAST_CHECKPOINT)) as file:
        file.write(str(checkpoint).encode())
    sync_folder(work_dir)
