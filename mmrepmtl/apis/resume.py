"""Which checkpoint a run starts from, and what becomes of the files that an earlier run left in its work directory."""

import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from mmrepmtl.engine.hooks.checkpoint import INTERRUPTED, LAST_CHECKPOINT, name_last
from mmrepmtl.engine.hooks.selection import BEST_CHECKPOINT, HISTORY_FILE
from mmrepmtl.engine.resumable import check_complete
from mmrepmtl.utils.checkpoint import load_checkpoint
from mmrepmtl.utils.files import sweep_temporary
from mmrepmtl.utils.folders import check_writable

# Of a run, beside its checkpoints: what the next run in the same folder would overwrite.
RESULTS = (BEST_CHECKPOINT, HISTORY_FILE, 'metrics.json', 'test_metrics.json', 'progress.json')
RANKS = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')
LISTED = 5


class _Whole(NamedTuple):
    """A checkpoint that a run can go on from; the later one is the greater one."""

    iterations: int
    epochs: int
    written: float
    path: Path


def prepare_start(cfg: Config, trust_checkpoint: bool = False) -> list[str]:
    """Finds the checkpoint that a run starts from and protects the files of others; changes ``cfg.load_from``.

    * ``cfg.resume`` with ``cfg.load_from``: that file, which must hold a whole state.
    * ``cfg.resume`` alone: the checkpoint that ``last_checkpoint`` names, in the run's own folder, wherever that was
      copied or moved to. Where the name or the file is no good, the newest whole checkpoint. A folder without any
      checkpoint starts a new run.
    * Otherwise a new run.

    Files of an earlier run that this one would overwrite go to a folder ``previous_TIME`` beside them.

    Args:
        cfg: As :func:`mmrepmtl.apis.load_config` makes it.
        trust_checkpoint: Load checkpoints that hold more than data.

    Returns:
        What the log is to say: which checkpoint is taken, what was left out and why, what was set aside.

    Raises:
        ValueError: If the work directory cannot be written, a checkpoint is damaged, refused or cannot be resumed, or
            the folder has checkpoints of which none is whole.
    """
    check_writable(cfg.work_dir, 'the work directory')
    for folder in checkpoint_folders(cfg):
        sweep_temporary(folder)
    start = cfg.get('load_from')
    if not cfg.get('resume'):
        if start is not None and '://' not in str(start):
            load_checkpoint(start, trust=trust_checkpoint)
        return _set_aside(cfg, [*_checkpoints(cfg), *_results(cfg)], 'this run starts anew')
    if start is not None:
        check_complete(load_checkpoint(start, trust=trust_checkpoint), start)
        return _go_on_from(cfg, Path(start), trust_checkpoint)
    notes: list[str] = []
    found = find_checkpoint(cfg, trust_checkpoint, notes)
    if found is not None:
        cfg.load_from = str(found)
        return notes
    notes.append(f'--resume: there is no checkpoint in {cfg.work_dir}, so the run starts anew')
    return notes + _set_aside(cfg, _results(cfg), 'it left no checkpoint')


def find_checkpoint(cfg: Config, trust_checkpoint: bool = False, notes: list[str] | None = None) -> Path | None:
    """The checkpoint of a run to go on from.

    Args:
        cfg: Of the run.
        trust_checkpoint: Load checkpoints that hold more than data.
        notes: Takes what the log is to say.

    Returns:
        The file, or None if the run has not written any checkpoint.

    Raises:
        ValueError: If there are checkpoints, or there were, and none can be resumed: with the reason for each. If the
            newest one could run code.
    """
    notes = [] if notes is None else notes
    left_out: list[str] = []
    named = _read_last(cfg, left_out, notes)
    best = _examine(named, trust_checkpoint, left_out) if named else None
    others = [path for path in _checkpoints(cfg) if path != named and path.name != LAST_CHECKPOINT]
    if best is not None:
        # A run may have been killed after it wrote one and before it named it.
        since = Path(cfg.work_dir, LAST_CHECKPOINT).stat().st_mtime_ns
        others = [path for path in others if path.stat().st_mtime_ns > since]
    whole = [_examine(path, trust_checkpoint, left_out) for path in others]
    best = max([found for found in (*whole, best) if found is not None], default=None)
    if best is None and not left_out:
        return None
    if best is None:
        raise ValueError(
            f'--resume: {cfg.work_dir} has no checkpoint that can be resumed: {"; ".join(left_out)}. Give one with '
            '--resume PATH, or start anew without --resume, which keeps these files in a folder of their own'
        )
    if best.path != named:
        notes += [f'--resume: left out: {reason}' for reason in left_out]
        notes.append(
            f'--resume: goes on from {best.path}, the newest whole checkpoint (epoch {best.epochs}, iteration '
            f'{best.iterations})'
        )
    return best.path


def checkpoint_folders(cfg: Config) -> list[Path]:
    """Where a run keeps its checkpoints: its work directory, and what its checkpoint hooks have as ``out_dir``."""
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


def _checkpoints(cfg: Config) -> list[Path]:
    """The run's checkpoints by their names, damaged ones among them, and what names the last one."""
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


def _results(cfg: Config) -> list[Path]:
    found = [Path(cfg.work_dir, name) for name in RESULTS]
    for folder in checkpoint_folders(cfg):  # of CheckpointHook(save_best=...)
        found += sorted(folder.glob('best_*.pth'))
    return [path for path in found if path.is_file()]


def _read_last(cfg: Config, left_out: list[str], notes: list[str]) -> Path | None:
    """What ``last_checkpoint`` names in the run's own folders; what is wrong with it goes to ``left_out``."""
    file, folders = Path(cfg.work_dir, LAST_CHECKPOINT), checkpoint_folders(cfg)
    try:
        text = file.read_bytes().decode().strip()
    except FileNotFoundError:
        if _checkpoints(cfg):
            left_out.append(f'{file} is missing')
        return None
    except (OSError, UnicodeDecodeError) as error:
        left_out.append(f'{file} cannot be read ({error})')
        return None
    if not text or not text.isprintable() or len(text) > 4096:
        left_out.append(f'{file} {"names no file" if text else "is empty"}')
        return None
    for own in (folder / Path(text).name for folder in folders):
        if Path(text).name and own.is_file():
            # A copied or moved run: its own checkpoints count, not those of the folder that it was made from.
            if os.path.realpath(own) != os.path.realpath(text):
                notes.append(f'--resume: {file} names {text}; the run was copied or moved, so {own} is used')
            return own
    left_out.append(f'{text}, which {file} names, is not in {" or ".join(map(str, folders))}')
    return None


def _examine(path: Path, trust: bool, left_out: list[str], refuse: bool = True) -> _Whole | None:
    try:
        checkpoint = load_checkpoint(path, trust=trust)
        check_complete(checkpoint, path)
    except (ValueError, OSError) as error:
        text = str(error)
        if refuse and re.search(r' is refused: (it holds|Unsupported (global|class))', text):
            raise  # whole, but it could run code: an older one in its place would be a guess
        left_out.append(text.partition(' To start a new run')[0].rstrip('.'))
        return None
    meta = checkpoint['meta']
    return _Whole(meta['iter'], meta['epoch'], path.stat().st_mtime, path)


def _go_on_from(cfg: Config, start: Path, trust: bool) -> list[str]:
    """Keeps what another run, or this one after ``start``, has left where the run will write."""
    others = [path for path in _checkpoints(cfg) if path.resolve() != start.resolve()]
    if start.resolve().parent not in [folder.resolve() for folder in checkpoint_folders(cfg)]:
        return _set_aside(cfg, [*others, *_results(cfg)], f'this one goes on from {start}')
    progress, later = _examine(start, trust, []), []
    for path in others:
        if path.name != LAST_CHECKPOINT:
            found = _examine(path, trust, [], refuse=False)
            if found is not None and found.iterations > progress.iterations:
                later.append(path)
    notes = _set_aside(cfg, later, f'this one goes back to {start}')
    if _is_first(cfg):
        name_last(cfg.work_dir, os.path.abspath(start))
    return notes


def _set_aside(cfg: Config, files: list[Path], reason: str) -> list[str]:
    """Moves files into ``previous_TIME``; those that the config starts from keep their names as well."""
    if not files or not _is_first(cfg):
        return []
    needed = {os.path.realpath(text) for text in _strings(cfg.to_dict()) if os.sep in text or '.' in text}
    notes = []
    for folder in dict.fromkeys(path.parent for path in files):
        moved = [path for path in files if path.parent == folder]
        target = _new_folder(folder)
        for path in moved:
            if os.path.realpath(path) in needed:
                shutil.copy2(path, target / path.name)
            else:
                os.replace(path, target / path.name)
        names = ', '.join(path.name for path in moved[:LISTED]) + (', ...' if len(moved) > LISTED else '')
        notes.append(f'{folder} held files of an earlier run; {reason}, so they were moved to {target}: {names}')
    return notes


def _new_folder(folder: Path) -> Path:
    stem = f'previous_{time.strftime("%Y%m%d_%H%M%S")}'
    for number in range(10_000):
        target = folder / (stem if number == 0 else f'{stem}_{number}')
        try:
            target.mkdir()
            return target
        except FileExistsError:
            continue
    raise ValueError(f'{folder} holds too many folders {stem}_*')


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _strings(part)


def _is_first(cfg: Config) -> bool:
    """Whether this is the first process; the group of processes may not be there yet."""
    return int(os.environ.get(RANKS.get(cfg.get('launcher') or 'none', ''), 0)) == 0
