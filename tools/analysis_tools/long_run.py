#!/usr/bin/env python
"""Trains a tiny network for many iterations with each method, and shows whether anything is kept per iteration.

Every method runs in a process of its own through mmengine's Runner, with the hooks of the default runtime, validation,
pictures, checkpoints and the log files of a real run; only the network and its data are small. Every `--every`
iterations are read:

    rss        resident memory of the process (MB)
    tensors    live tensors that Python knows
    objects    objects that Python's garbage collector tracks, after a collection
    fds        open file descriptors
    threads    threads of the process
    history    values in mmengine's log buffers
    log        bytes of the log files (text and scalars, no pictures)
    checkpoint bytes of the newest checkpoint

The first `--warmup` iterations do not count: allocators, caches, the log buffers and those of methods fill up in them.
After that a method is flat if per 100 iterations (least squares) tensors, fds and threads do not grow, rss grows by
less than 0.25 MB, objects by less than 10, history by less than 95 (validations and diagnostics) and the
checkpoint by less than 2000 bytes, and if the log of the second half is at most a tenth longer than that of the first.
The exit status is 1 if a method is not flat.

    python tools/analysis_tools/long_run.py --methods all --iterations 2000 --json long_run.json
"""

import argparse
import gc
import json
import logging
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.hooks import Hook
from torch import Tensor, nn
from torch.utils.data import Dataset

from mmrepmtl.apis import available_methods, load_config, train
from mmrepmtl.datasets import SynthRoomsDataset

CONFIG = Path(__file__).resolve().parents[2] / 'configs' / 'synth_rooms' / 'quickstart.py'
EPOCH = 100
#: The growth that is allowed per 100 iterations after the warm-up.
LIMITS = dict(rss=0.25, objects=10.0, tensors=0.0, fds=0.0, threads=0.0, history=95.0, checkpoint=2000.0)
LOG_SPREAD = 0.1


class FewRooms(Dataset):
    """Synthetic rooms, rendered once and then repeated: a run of minutes spends its time in what it tests."""

    def __init__(self, length: int, rooms: int = 8, size: tuple[int, int] = (8, 8)) -> None:
        source = SynthRoomsDataset(size=size, num_samples=rooms, pipeline=[dict(type='PackMultiTaskInputs')])
        self.metainfo, self.length = source.metainfo, length
        self._rooms = [source.load(index) for index in range(rooms)]
        self._pack: Compose = source.pipeline

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        room = self._rooms[int(index) % len(self._rooms)]
        copies = {name: value.copy() if hasattr(value, 'copy') else value for name, value in room['gt'].items()}
        return self._pack(dict(room, img=room['img'].copy(), gt=copies, sample_idx=int(index)))


class TinyEncoder(nn.Sequential):
    """Two convolutions at a quarter of the picture's size, with BatchNorm between them."""

    channels = (8,)

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()
        )


class Probe(Hook):
    """Reads what a run holds, every so many iterations and after all other hooks of that iteration."""

    priority = 'LOWEST'

    def __init__(self, every: int, out: Path) -> None:
        self.every, self.out = every, out

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Adds a line to the file: what a hook remembers would count as growth."""
        if (runner.iter + 1) % self.every == 0:
            with self.out.open('a') as file:
                file.write(json.dumps(dict(iteration=runner.iter + 1, **measure(runner))) + '\n')


def measure(runner) -> dict[str, float]:
    """The columns of the module's docstring, for this moment of a run."""
    gc.collect()
    objects = gc.get_objects()
    tensors = sum(issubclass(type(o), Tensor) for o in objects)  # isinstance would run the code of proxies
    folder = Path(runner.work_dir)
    logs = [p for pattern in ('*.log', '*.json', '*.jsonl') for p in folder.rglob(pattern) if p.is_file()]
    checkpoints = sorted(folder.glob('epoch_*.pth'), key=lambda path: path.stat().st_mtime)
    buffers = runner.message_hub.log_scalars.values()
    return dict(
        rss=int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGESIZE') / 2**20,
        tensors=tensors,
        objects=len(objects),
        fds=len(os.listdir('/proc/self/fd')),
        threads=threading.active_count(),
        history=sum(len(buffer.data[0]) for buffer in buffers),
        log=sum(path.stat().st_size for path in logs),
        checkpoint=checkpoints[-1].stat().st_size if checkpoints else 0,
    )


def make_config(method: str, iterations: int, folder: Path, epoch: int = EPOCH, pictures: bool = True) -> Config:
    """The config of a run of ``iterations`` of ``method`` that writes into ``folder``."""
    cfg = load_config(CONFIG, method=method, work_dir=str(folder), seed=0)
    cfg.experiment_name = f'long_run_{method}_{folder.name}'
    decoder = dict(type='ConvDecoder', hidden_channels=4, num_convs=1, dropout=0.1)
    cfg.model.encoder = TinyEncoder()
    cfg.model.pop('neck')  # which reads several levels
    for head in cfg.model.heads.values():
        head.decoder = decoder
    batch = 4
    window = cfg.optim_wrapper.get('accumulative_counts', 1)
    epoch -= epoch % window
    for key, length in (('train_dataloader', batch * epoch), ('val_dataloader', 8), ('test_dataloader', 8)):
        cfg[key].update(batch_size=batch, num_workers=0, persistent_workers=False, dataset=FewRooms(length))
    cfg.train_cfg.update(max_epochs=-(-iterations // epoch), val_interval=1)
    cfg.param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=30)]
    cfg.default_hooks.logger.interval = 10
    cfg.default_hooks.checkpoint.max_keep_ckpts = 2
    cfg.default_hooks.visualization.interval = 4 if pictures else 0
    return cfg


def run_method(method: str, iterations: int, every: int, folder: Path, **changes) -> list[dict]:
    """Trains with ``method`` in this process; returns the rows of :class:`Probe`."""
    cfg = make_config(method, iterations, folder, **changes)
    # Always at the end of a window of micro-batches, in which gradients are held.
    every = max(every - every % cfg.optim_wrapper.get('accumulative_counts', 1), 1)
    out = folder.with_suffix('.rows')
    cfg.custom_hooks.append(Probe(every, out))
    train(Config(cfg.to_dict(), format_python_code=False))
    return [json.loads(line) for line in out.read_text().splitlines()]


def slope(rows: Sequence[dict], key: str) -> float:
    """Growth of a column per 100 iterations, by least squares."""
    return 100 * statistics.linear_regression([r['iteration'] for r in rows], [r[key] for r in rows]).slope


def judge(rows: Sequence[dict], warmup: int) -> tuple[dict[str, float], list[str]]:
    """The growth of each column after the warm-up, and a sentence for each that grows too much.

    Raises:
        ValueError: If fewer than three rows are left after the warm-up.
    """
    rows = [row for row in rows if row['iteration'] > warmup]
    if len(rows) < 3:
        raise ValueError(f'{len(rows)} readings after {warmup} iterations of warm-up; take more, or --every fewer')
    growth = {key: slope(rows, key) for key in (*LIMITS, 'log')}
    bad = [f'{key} grows by {growth[key]:.2f} per 100 iterations' for key, most in LIMITS.items() if growth[key] > most]
    steps = [(b['log'] - a['log']) / (b['iteration'] - a['iteration']) for a, b in zip(rows, rows[1:], strict=False)]
    # The mean of each half: a reading now and then falls beside a validation.
    half = len(steps) // 2
    first, second = (statistics.fmean(part) for part in (steps[:half] or steps, steps[half:]))
    if second > first * (1 + LOG_SPREAD):
        bad.append(f'the log grew by {first:.0f} bytes per iteration and then by {second:.0f}')
    return growth, bad


def _in_a_process(method: str, args: argparse.Namespace, out: Path) -> None:
    warnings.simplefilter('ignore')
    logging.disable(logging.CRITICAL if args.quiet else logging.NOTSET)
    if args.quiet:
        os.dup2(os.open(out.with_suffix('.txt'), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    torch.set_num_threads(1)
    logging.disable(logging.NOTSET)  # the log of a run is part of what is tested
    with tempfile.TemporaryDirectory() as folder:
        rows = run_method(method, args.iterations, args.every, Path(folder, 'run'))
    out.write_text(json.dumps(rows))


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads ``argv``, or the arguments of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--methods', nargs='+', default=['all'], help="names as tools/train.py --method takes, or 'all'"
    )
    parser.add_argument('--iterations', type=int, default=2000)
    parser.add_argument('--warmup', type=int, default=1000)
    parser.add_argument('--every', type=int, default=EPOCH, help='iterations between two readings')
    parser.add_argument('--json', help='file for all readings')
    parser.add_argument('--verbose', dest='quiet', action='store_false', help='show the log of the runs')
    args = parser.parse_args(argv)
    known = [name for name in available_methods(CONFIG) if name != 'stl']  # that is one run for each task
    args.methods = known if args.methods == ['all'] else args.methods
    if unknown := [name for name in args.methods if name not in known]:
        parser.error(f'unknown methods {unknown}; there are {", ".join(known)}')
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the tool; ``argv`` are its arguments, by default those of the process. Returns the exit status."""
    args = parse_args(argv)
    columns = (*LIMITS, 'log')
    print(f'growth per 100 iterations, after {args.warmup} of {args.iterations}')
    print('method'.ljust(14) + ''.join(name.rjust(12) for name in columns))
    found, failed = {}, 0
    # Forked: the imports are made once, and each method starts from the same memory.
    context = multiprocessing.get_context('fork')
    for method in args.methods:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, 'rows.json')
            process = context.Process(target=_in_a_process, args=(method, args, out))
            process.start()
            process.join()
            if process.exitcode:
                print(f'{method}: the run ended with status {process.exitcode}', file=sys.stderr)
                failed += 1
                continue
            found[method] = json.loads(out.read_text())
        growth, bad = judge(found[method], args.warmup)
        print(method.ljust(14) + ''.join(f'{growth[name]:12.2f}' for name in columns), *bad, sep='  ', flush=True)
        failed += bool(bad)
        if args.json:
            Path(args.json).write_text(json.dumps(found, indent=1))
    return int(failed > 0)


if __name__ == '__main__':
    sys.exit(main())
