"""The screen of a quiet run: what runs, how far it is, and what a validation gave."""

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner

from mmrepmtl.engine.optim_wrapper import MultiTaskOptimWrapper
from mmrepmtl.engine.report import describe
from mmrepmtl.methods.collectives import num_processes
from mmrepmtl.registry import HOOKS
from mmrepmtl.utils.progress import Progress


@HOOKS.register_module()
class ProgressHook(Hook):
    """Prints for a person, on the first rank: the parts of the run, its progress with the time left, its validations.

    Args:
        lines: Number of lines of a training where the output is no terminal. On a terminal there is a bar.
    """

    priority = 'VERY_LOW'

    def __init__(self, lines: int = 20) -> None:
        self.lines = lines
        self._bars: dict[str, Progress] = {}

    def before_train(self, runner: Runner) -> None:
        """Says what runs."""
        if is_main_process():
            for name, text in _facts(runner).items():
                print(f'{name:<9} {text}', flush=True)

    def before_train_epoch(self, runner: Runner) -> None:
        """Opens the progress of the training, at the first epoch of this process."""
        if 'training' not in self._bars:
            self._open('training', runner.max_iters, runner.iter, self.lines)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """One more iteration."""
        bar = self._bars.get('training')
        if bar is not None and bar.is_due(runner.iter + 1):
            bar.update(runner.iter + 1, _note(runner, outputs))

    def after_train(self, runner: Runner) -> None:
        """Ends the progress of the training."""
        self._close('training')

    def before_val_epoch(self, runner: Runner) -> None:
        """Opens the progress of a validation; it has its own line."""
        if 'training' in self._bars:
            self._bars['training'].close()
        self._open('validation', _number_of_batches(runner.val_dataloader), 0, 1)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """One more batch of a validation."""
        self._step('validation')

    def after_val_epoch(self, runner: Runner, metrics: Mapping[str, float] | None = None) -> None:
        """Says the first metric of each task."""
        self._close('validation')
        if metrics and is_main_process():
            print(f'validation: {", ".join(_first_of_each(metrics))}', flush=True)

    def before_test_epoch(self, runner: Runner) -> None:
        """Opens the progress of a test."""
        self._open('test', _number_of_batches(runner.test_dataloader), 0, 4)

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """One more batch of a test."""
        self._step('test')

    def after_test_epoch(self, runner: Runner, metrics: Mapping[str, float] | None = None) -> None:
        """Ends the progress of a test."""
        self._close('test')

    def _open(self, label: str, total: int, start: int, lines: int) -> None:
        if is_main_process():
            self._bars[label] = Progress(label, total, start, lines)

    def _step(self, label: str) -> None:
        if label in self._bars:
            self._bars[label].step()

    def _close(self, label: str) -> None:
        bar = self._bars.pop(label, None)
        if bar is not None:
            bar.close()


def _number_of_batches(loader: Any) -> int:
    """0 where nobody knows: a stream has no length."""
    try:
        return len(loader)
    except TypeError:
        return 0


def _facts(runner: Runner) -> dict[str, str]:
    """The parts of the run, {name: text}."""
    model = runner.model.module if runner.distributed else runner.model
    weights = sum(parameter.numel() for parameter in model.parameters())
    loader, wrapper = runner.train_dataloader, runner.optim_wrapper
    method = describe(wrapper) if isinstance(wrapper, MultiTaskOptimWrapper) else type(wrapper).__name__
    device = next(model.parameters()).device
    threads = f', {torch.get_num_threads()} threads' if device.type == 'cpu' else ''
    ranks = f', {num_processes()} processes' if num_processes() > 1 else ''
    steps = f'{runner.max_epochs} epochs, ' if _has_epochs(runner) else ''
    batch = f', {loader.batch_size} in a batch' if loader.batch_size else ''
    done = f', {runner.iter} of them done' if runner.iter else ''
    facts = dict(
        model=f'{_parts(model, runner.cfg.get("model"))}; {weights / 1e6:.1f} M parameters',
        data=f'{_name_of(loader.dataset)}, {_count(loader.dataset)} training images{batch}',
        method=method.replace('; ', '\n' + 10 * ' '),
        device=f'{device}{threads}{ranks}',
        length=f'{steps}{runner.max_iters} iterations{done}',
        log=runner.log_dir,
    )
    return {name: text for name, text in facts.items() if text}


def _parts(model: torch.nn.Module, config: Any) -> str:
    """The encoder, neck and heads of a model, by the names of its config."""
    found = []
    for part in ('encoder', 'backbone', 'neck'):
        module = getattr(model, part, None)
        if isinstance(module, torch.nn.Module):
            settings = config.get(part) if isinstance(config, Mapping) else None
            settings = settings if isinstance(settings, Mapping) else {}
            name = settings.get('name') or type(module).__name__
            start = settings.get('checkpoint') or settings.get('pretrained')
            found.append(f'{name} (pretrained)' if start else str(name))
    heads = getattr(model, 'heads', None)
    if isinstance(heads, torch.nn.ModuleDict):
        found.append(f'heads {", ".join(heads)}')
    return ' -> '.join(found) or type(model).__name__


def _has_epochs(runner: Runner) -> bool:
    return not isinstance(runner.train_loop, IterBasedTrainLoop)


def _name_of(dataset: Any) -> str:
    return type(dataset).__name__


def _count(dataset: Any) -> str:
    return str(len(dataset)) if hasattr(dataset, '__len__') else 'a stream of'


def _note(runner: Runner, outputs: Any) -> str:
    """The epoch and the loss of each task, before any transform; of a foreign model the sum."""
    notes = [f'epoch {runner.epoch + 1}'] if _has_epochs(runner) else []
    losses = outputs if isinstance(outputs, Mapping) else {}
    raw = {key.removeprefix('raw/'): value for key, value in losses.items() if key.startswith('raw/')}
    if not raw and 'loss' in losses:
        notes.append(f'loss {float(losses["loss"]):.3g}')
    if raw:
        notes.append('losses ' + ' '.join(f'{name} {float(value):.3g}' for name, value in raw.items()))
    return ', '.join(notes)


def _first_of_each(metrics: Mapping[str, float]) -> list[str]:
    """'task/metric value' for the first metric of each task."""
    first: dict[str, str] = {}
    for key, value in metrics.items():
        first.setdefault(key.rpartition('/')[0], f'{key} {value:.4g}')
    return list(first.values())
