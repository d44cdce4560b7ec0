"""Finds the checkpoint that a run goes on from, also in a folder with damaged, copied or missing files."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from mmrepmtl.engine.resumable import check_complete
from mmrepmtl.utils.checkpoint import load_checkpoint

LAST_CHECKPOINT = 'last_checkpoint'
INTERRUPTED = 'interrupted.pth'


class WholeCheckpoint(NamedTuple):
    """A checkpoint that a run can go on from; the later one is the greater one."""

    iterations: int
    epochs: int
    written: float
    path: Path


def find_checkpoint(
    cfg: Config, trust_checkpoint: bool = False, notes: list[str] | None = None, weights_only: bool = False
) -> Path | None:
    """Finds the checkpoint that a run goes on from.

    Args:
        cfg: Config of the run.
        trust_checkpoint: Load checkpoints that hold more than data.
        notes: A list to which the lines for the log are added.
        weights_only: Accept a checkpoint without the state of a training, for a prediction.

    Returns:
        The file, or None if the run has not written any checkpoint.

    Raises:
        ValueError: If there are or were checkpoints and none can be resumed; names the reason for each. If the newest
            one could run code.
    """
    found = find_whole(cfg, trust_checkpoint, notes, weights_only)
    return found and found.path


def find_whole(
    cfg: Config, trust_checkpoint: bool = False, notes: list[str] | None = None, weights_only: bool = False
) -> WholeCheckpoint | None:
    """Finds the checkpoint as :func:`find_checkpoint` does, and returns its progress too."""
    notes = [] if notes is None else notes
    left_out: list[str] = []
    moved: list[str] = []
    named = _read_last(cfg, left_out, moved)
    notes += [f'{"" if weights_only else "--resume: "}{note}' for note in moved]
    best = examine(named, trust_checkpoint, left_out, weights_only=weights_only) if named else None
    others = [path for path in run_checkpoints(cfg) if path != named and path.name != LAST_CHECKPOINT]
    if best is not None:
        # A run may have been killed between writing a checkpoint and writing its name.
        since = Path(cfg.work_dir, LAST_CHECKPOINT).stat().st_mtime_ns
        others = [path for path in others if path.stat().st_mtime_ns > since]
    whole = [examine(path, trust_checkpoint, left_out, weights_only=weights_only) for path in others]
    best = max([found for found in (*whole, best) if found is not None], default=None)
    if best is None and not left_out:
        return None
    who = '' if weights_only else '--resume: '
    if best is None and weights_only:
        raise ValueError(f'{cfg.work_dir} has no checkpoint that can be read: {"; ".join(left_out)}; give a checkpoint')
    if best is None:
        raise ValueError(
            f'--resume: {cfg.work_dir} has no checkpoint that can be resumed: {"; ".join(left_out)}. Give one with '
            '--resume PATH, or start anew without --resume, which keeps these files in a folder of their own'
        )
    notes += [f'{who}left out: {reason}' for reason in left_out]
    if best.path != named:
        notes.append(
            f'{who}{"takes" if weights_only else "goes on from"} {best.path}, the newest whole checkpoint (epoch '
            f'{best.epochs}, iteration {best.iterations})'
        )
    return best


def checkpoint_folders(cfg: Config) -> list[Path]:
    """Returns the folders of a run's checkpoints: its work directory, and the ``out_dir`` of its checkpoint hooks."""
    folders = [Path(cfg.work_dir)]
    for hook in _saving_hooks(cfg):
        out_dir = hook.get('out_dir')
        if out_dir and '://' not in str(out_dir) and os.path.abspath(cfg.work_dir) != str(out_dir):
            folders.append(Path(out_dir, Path(os.path.abspath(cfg.work_dir)).name))
    return folders


def _saving_hooks(cfg: Config) -> Iterator[Mapping[str, Any]]:
    hooks = [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or [])]
    for hook in hooks:
        if isinstance(hook, Mapping):
            kind = hook.get('type')
            if str(getattr(kind, '__name__', kind)).rpartition('.')[2] == 'CheckpointHook':
                yield hook


def run_checkpoints(cfg: Config) -> list[Path]:
    """Lists the files that are named like checkpoints, damaged or not, and the file that names the last one."""
    own = [hook['filename_tmpl'] for hook in _saving_hooks(cfg) if hook.get('filename_tmpl')]
    templates = dict.fromkeys(['epoch_{}.pth', 'iter_{}.pth', *own])
    patterns = [re.compile(r'0*\d+'.join(map(re.escape, re.split(r'\{[^}]*\}', text)))) for text in templates]
    names = (INTERRUPTED, LAST_CHECKPOINT)
    return [
        path
        for folder in checkpoint_folders(cfg)
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if path.name in names or any(pattern.fullmatch(path.name) for pattern in patterns)
    ]


def _read_last(cfg: Config, left_out: list[str], notes: list[str]) -> Path | None:
    """Returns the file in the run's own folders that ``last_checkpoint`` names; errors are added to ``left_out``."""
    file, folders = Path(cfg.work_dir, LAST_CHECKPOINT), checkpoint_folders(cfg)
    try:
        if file.exists() and not file.is_file():
            raise OSError('it is no regular file')  # reading a pipe would wait for ever
        text = file.read_bytes().decode().strip()
    except FileNotFoundError:
        if run_checkpoints(cfg):
            left_out.append(f'{file} is missing')
        return None
    except (OSError, UnicodeDecodeError) as error:
        left_out.append(f'{file} cannot be read ({error})')
        return None
    if not text or not text.isprintable() or len(text) > 4096:
        left_out.append(f'{file} {"names no file" if text else "is empty"}')
        return None
    for own in (folder / Path(text).name for folder in folders):
        if own.is_file() and own.name != LAST_CHECKPOINT and (own.suffix == '.pth' or own in run_checkpoints(cfg)):
            # A copied or moved run: its own checkpoints count, not those of the folder that it was made from.
            if os.path.realpath(own) != os.path.realpath(text):
                notes.append(f'{file} names {text}; the run was copied or moved, so {own} is used')
            return own
    left_out.append(f'{text}, which {file} names, is not in {" or ".join(map(str, folders))}')
    return None


def examine(
    path: Path, trust: bool, left_out: list[str], refuse: bool = True, weights_only: bool = False
) -> WholeCheckpoint | None:
    """Reads a checkpoint to see whether a run can go on from it.

    Args:
        path: The file.
        trust: Load it even if it holds more than data.
        left_out: A list to which the reason is added, if it cannot be resumed.
        refuse: Raise the error of a file that could run code: an older file in its place would be a guess.
        weights_only: Accept a checkpoint without the state of a training.

    Returns:
        The file with its progress, or None if a run cannot go on from it.

    Raises:
        ValueError: If the file could run code and ``refuse`` is set.
    """
    try:
        checkpoint = load_checkpoint(path, trust=trust)
        if not weights_only:
            check_complete(checkpoint, path)
    except (ValueError, OSError) as error:
        text = str(error)
        if refuse and re.search(r' is refused: .*(it holds|Unsupported (global|class))', text):
            raise
        left_out.append(text.partition(' To start a new run')[0].rstrip('.'))
        return None
    meta = checkpoint.get('meta', {})
    return WholeCheckpoint(meta.get('iter') or 0, meta.get('epoch') or 0, path.stat().st_mtime, path)
