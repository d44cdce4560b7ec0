"""Checkpoints are kept until the next one is whole."""

import os
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook as _CheckpointHook

from mmrepmtl.engine.last_checkpoint import INTERRUPTED, LAST_CHECKPOINT
from mmrepmtl.registry import HOOKS
from mmrepmtl.utils.files import sweep_temporary, sync_folder, whole_file
from mmrepmtl.utils.folders import check_writable


# In mmengine's own registry, so that configs of any scope, mmseg's own too, get it by the plain name.
@HOOKS.register_module(force=True)
class CheckpointHook(_CheckpointHook):
    """mmengine's hook, with all its arguments, in an order that loses nothing when the run is killed at any moment.

    A checkpoint is written under a temporary name and renamed when it is whole; then ``last_checkpoint`` names it, in
    the same way; only then older ones are deleted, so ``max_keep_ckpts=N`` needs room for N + 1. Leftovers of killed
    runs are removed at the start. Paths that a copied or moved run remembers are looked up in its own folder.

    Raises:
        ValueError: At the start, if the folder cannot be written.
    """

    saved_iter: int | None = None
    """The number of iterations that the last checkpoint which can be resumed holds."""

    def before_train(self, runner) -> None:
        """Finds the folder, removes leftovers there and in the work directory."""
        super().before_train(runner)
        if self.max_keep_ckpts > 0:
            # One more than max_keep_ckpts while a new one is written.
            self.keep_ckpt_ids = deque(self.keep_ckpt_ids)
        self._own_best(runner)
        own = map(os.path.abspath, (runner.work_dir, str(self.out_dir)))
        if runner.iter > 0 and runner._load_from and os.path.dirname(os.path.abspath(runner._load_from)) in own:
            # A validation that is made up for can be left: --resume finds this file again.
            self.saved_iter = runner.iter
        if not is_main_process():
            return
        for folder in {str(runner.work_dir), str(self.out_dir)}:
            if '://' in folder:
                continue
            check_writable(folder, 'the folder of the checkpoints')
            for file in sweep_temporary(folder):
                runner.logger.info(f'{file} was left by a killed run and is removed')

    def _own_best(self, runner) -> None:
        """Takes the best checkpoints that a copied run remembers from the copy; the original's are not its own."""
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

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        if self.max_keep_ckpts > 0:
            if step in self.keep_ckpt_ids:  # the same one again, with the best score
                self.keep_ckpt_ids.remove(step)
            self.keep_ckpt_ids.append(step)
            # With the one to be deleted: a run that is killed before it did so does it when it resumes.
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

    def save_interrupted(self, runner, meta: dict) -> str:
        """Saves a checkpoint between two that are due, in place of an earlier one of this kind.

        Args:
            runner: Of the run.
            meta: ``epoch`` and ``iter`` that it holds.

        Returns:
            The file.
        """
        self._write(runner, INTERRUPTED, meta, save_optimizer=True, save_param_scheduler=True, by_epoch=False)
        return self.last_ckpt

    def _write(self, runner, name: str, meta: dict, **options) -> None:
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        options |= dict(backend_args=self.backend_args)
        runner.save_checkpoint(self.out_dir, name, self.file_client_args, meta=meta, **options)
        if options['save_optimizer'] and options['save_param_scheduler']:
            self.saved_iter = meta['iter']
        if is_main_process():
            name_last(runner.work_dir, self.last_ckpt)

    def _remove(self, name: str) -> None:
        if not is_main_process():
            return
        path = self.file_backend.join_path(self.out_dir, name)
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):  # sharded ones are folders
            self.file_backend.rmtree(path)

    def _save_best_checkpoint(self, runner, metrics: Mapping[str, float]) -> None:
        """The best so far is deleted when the better one is whole, and the checkpoint that names it too."""
        if not self.save_best:
            return
        if 'auto' in self.key_indicators:
            self._init_rule(self.rules, [next(iter(metrics))])
        before = self._best_paths()
        for indicator in before:  # mmengine would delete it first
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
    """Says in ``last_checkpoint`` of the work directory which checkpoint a run resumes from."""
    with whole_file(Path(work_dir, LAST_CHECKPOINT)) as file:
        file.write(str(checkpoint).encode())
    sync_folder(work_dir)
