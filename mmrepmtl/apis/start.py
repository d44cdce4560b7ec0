"""Which checkpoint a run starts from, and what becomes of the files that an earlier run left in its work directory."""

import json
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmrepmtl.engine.hooks.metrics_file import METRICS_FILE
from mmrepmtl.engine.hooks.resume import seed_sentence
from mmrepmtl.engine.hooks.saving import name_last
from mmrepmtl.engine.hooks.selection import BEST_CHECKPOINT, HISTORY_FILE
from mmrepmtl.engine.last_checkpoint import (
    LAST_CHECKPOINT,
    WholeCheckpoint,
    checkpoint_folders,
    examine,
    find_whole,
    run_checkpoints,
)
from mmrepmtl.engine.last_checkpoint import find_checkpoint as find_checkpoint
from mmrepmtl.engine.resumable import check_complete
from mmrepmtl.utils.checkpoint import load_checkpoint
from mmrepmtl.utils.files import sweep_temporary
from mmrepmtl.utils.folders import check_writable

# Files of a run, beside its checkpoints, that the next run in the same folder would overwrite.
RESULTS = (BEST_CHECKPOINT, HISTORY_FILE, 'metrics.json', 'test_metrics.json', 'progress.json')
RANKS = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')
LISTED = 5
NEW_RUN_FROM = 'load_from_of_a_new_run'
"""Key of a config that resumes: the weights that the run starts from where there is no checkpoint yet."""


def prepare_start(cfg: Config, trust_checkpoint: bool = False) -> list[str]:
    """Finds the checkpoint that a run starts from and protects the files of others; changes ``cfg``.

    * ``cfg.resume`` with ``cfg.load_from``: that file, which must hold a whole state.
    * ``cfg.resume`` alone: the checkpoint that ``last_checkpoint`` names, in the run's own folder, wherever that was
      copied or moved to. If the name or the file is no good, the newest whole checkpoint. A folder without any
      checkpoint starts a new run, from the weights that the config names.
    * Otherwise a new run.

    A run that goes on has the seed of its checkpoint, which its data loader is built with, and the order of its heads.

    Files of an earlier run that this one would overwrite go to a folder ``previous_TIME`` beside them.

    Args:
        cfg: As :func:`mmrepmtl.apis.load_config` makes it.
        trust_checkpoint: Load checkpoints that hold more than data.

    Returns:
        Sentences for the log: which checkpoint is taken, what was left out and why, what was set aside.

    Raises:
        ValueError: If the work directory cannot be written, a checkpoint is damaged, refused or cannot be resumed, or
            the folder has checkpoints of which none is whole.
    """
    check_writable(cfg.work_dir, 'the work directory')
    for folder in checkpoint_folders(cfg):
        sweep_temporary(folder)
    start = cfg.get('load_from')
    if not cfg.get('resume'):
        _check_weights(start, trust_checkpoint)
        return _set_aside(cfg, [*run_checkpoints(cfg), *_results(cfg)], 'this run starts anew')
    if start is not None:
        checkpoint = load_checkpoint(start, trust=trust_checkpoint)
        check_complete(checkpoint, start)
        return _restore_settings(cfg, checkpoint) + _go_on_from(cfg, Path(start), trust_checkpoint)
    notes: list[str] = []
    found = find_whole(cfg, trust_checkpoint, notes)
    if found is not None:
        cfg.load_from = str(found.path)
        notes += _restore_settings(cfg, load_checkpoint(found.path, trust=trust_checkpoint))
        reason = f'this one goes on from iteration {found.iterations}'
        return notes + _set_aside(cfg, _later_results(cfg, found), reason, copied=_histories(cfg))
    cfg.resume, cfg.load_from = False, cfg.get(NEW_RUN_FROM)
    _check_weights(cfg.load_from, trust_checkpoint)
    weights = f' from the weights of {cfg.load_from}' if cfg.load_from else ''
    notes.append(f'--resume: there is no checkpoint in {cfg.work_dir}, so the run starts anew{weights}')
    return notes + _set_aside(cfg, _results(cfg), 'it left no checkpoint')


def _check_weights(start: str | None, trust: bool) -> None:
    if start is not None and '://' not in str(start):
        load_checkpoint(start, trust=trust)


def _restore_settings(cfg: Config, checkpoint: Mapping) -> list[str]:
    """Puts into the config what objects must be built with to go on: the run's seed, the order of its tasks."""
    return _restore_seed(cfg, checkpoint['meta'].get('seed')) + _restore_order(cfg, checkpoint)


def _restore_seed(cfg: Config, new: Any) -> list[str]:
    old = (cfg.get('randomness') or {}).get('seed')
    if isinstance(new, bool) or not isinstance(new, int) or old == new:
        return []
    cfg.randomness = dict(cfg.get('randomness') or {}, seed=new)
    for part in ('weighting', 'aggregator'):
        method = (cfg.get('optim_wrapper') or {}).get(part)
        if old is not None and isinstance(method, MutableMapping) and method.get('seed') == old:
            method['seed'] = new  # load_config had given it the run's
    return [seed_sentence(old, new)]


def _restore_order(cfg: Config, checkpoint: Mapping) -> list[str]:
    """A config that mmengine has written is sorted: heads in another order would get the optimizer state of others."""
    notes = []
    heads, wrapper = (cfg.get('model') or {}).get('heads'), cfg.get('optim_wrapper') or {}
    places = [str(key).removeprefix('module.').split('.') for key in checkpoint['state_dict']]
    order = list(dict.fromkeys(place[1] for place in places if place[0] == 'heads' and len(place) > 2))
    if isinstance(heads, dict) and _is_other_order(heads, order):
        notes.append(f"model.heads has the order {list(heads)} now and had {order}; the checkpoint's goes on")
        cfg.model.heads = {name: dict.__getitem__(heads, name) for name in order}
    method = checkpoint['optimizer'].get('multi_task')
    before = method.get('tasks') if isinstance(method, Mapping) else None
    tasks = wrapper.get('tasks')
    if isinstance(tasks, list | tuple) and isinstance(before, list) and _is_other_order(tasks, before):
        notes.append(f"optim_wrapper.tasks is {list(tasks)} now and was {before}; the checkpoint's goes on")
        wrapper['tasks'] = before
    return notes


def _is_other_order(names: Collection, order: list) -> bool:
    return list(names) != order and sorted(map(str, names)) == sorted(map(str, order))


def _results(cfg: Config) -> list[Path]:
    found = [Path(cfg.work_dir, name) for name in RESULTS]
    for folder in checkpoint_folders(cfg):  # CheckpointHook(save_best=...) writes them
        found += sorted(folder.glob('best_*.pth'))
    return [path for path in found if path.is_file()]


def _later_results(cfg: Config, start: WholeCheckpoint) -> list[Path]:
    """Results of iterations after ``start``: none of this run, which may have other settings from there on.

    A file that cannot be read is left to the hook that writes it.
    """
    if not is_first(cfg):
        return []

    def iteration(name: str) -> int:
        """The iteration of the run that a file is of; 0 if it cannot be read."""
        path = Path(cfg.work_dir, name)
        try:
            if name == BEST_CHECKPOINT:
                return int(load_checkpoint(path)['meta']['iter'])
            content = json.loads(path.read_text(encoding='utf-8'))
            if name == HISTORY_FILE:
                return max(int(entry['iter']) for entry in content['history'])
            return int(content['meta']['iteration'])
        except (ValueError, TypeError, KeyError, OSError):
            return 0

    names = (BEST_CHECKPOINT, HISTORY_FILE, METRICS_FILE)
    return [Path(cfg.work_dir, name) for name in names if iteration(name) > start.iterations]


def _histories(cfg: Config) -> list[Path]:
    """The file of which a resumed run needs the part up to its start."""
    return [Path(cfg.work_dir, HISTORY_FILE)]


def _go_on_from(cfg: Config, start: Path, trust: bool) -> list[str]:
    """Keeps what another run, or this one after ``start``, has left where the run will write."""
    if not is_first(cfg):  # which moves what this would read
        return []
    others = [path for path in run_checkpoints(cfg) if path.resolve() != start.resolve()]
    if start.resolve().parent not in [folder.resolve() for folder in checkpoint_folders(cfg)]:
        return _set_aside(cfg, [*others, *_results(cfg)], f'this one goes on from {start}')
    progress, later = examine(start, trust, []), []
    assert progress is not None  # load_from was read before
    for path in others:
        if path.name != LAST_CHECKPOINT:
            found = examine(path, trust, [], refuse=False)
            if found is not None and found.iterations > progress.iterations:
                later.append(path)
    later += _later_results(cfg, progress)
    notes = _set_aside(cfg, later, f'this one goes back to {start}', copied=_histories(cfg))
    name_last(cfg.work_dir, os.path.abspath(start))
    return notes


def _set_aside(cfg: Config, files: list[Path], reason: str, copied: Sequence[Path] = ()) -> list[str]:
    """Moves files into ``previous_TIME``; ``copied`` ones and those that the config starts from keep their names."""
    if not files or not is_first(cfg):
        return []
    needed = {os.path.realpath(text) for text in _strings(cfg.to_dict()) if os.sep in text or '.' in text}
    notes = []
    for folder in dict.fromkeys(path.parent for path in files):
        moved = [path for path in files if path.parent == folder]
        target = _new_folder(folder)
        for path in moved:
            if os.path.realpath(path) in needed or path in copied:
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


def is_first(cfg: Config) -> bool:
    """Whether this is the first process; the group of processes may not be there yet."""
    return int(os.environ.get(RANKS.get(cfg.get('launcher') or 'none', ''), 0)) == 0
