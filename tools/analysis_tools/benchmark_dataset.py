#!/usr/bin/env python
"""How long a sample of a config's data set takes on one core, decoded anew and from the cache (process time).

Prints milliseconds per sample: median [quartiles] over the samples of all epochs but the first, which warms up the
file system; for the cache the first epoch is the one that writes it.
"""

import os

for _variable in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'):
    os.environ[_variable] = '1'  # read when NumPy and torch are first imported

import argparse  # noqa: E402
import copy  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from mmengine.config import DictAction  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402

from mmrepmtl.apis import load_config  # noqa: E402
from mmrepmtl.apis.splits import dataset_of  # noqa: E402
from mmrepmtl.datasets import EpochIndex, MultiTaskDataset  # noqa: E402
from mmrepmtl.registry import DATASETS  # noqa: E402

STAGES = ('loading', 'pipeline')


def measure(dataset: MultiTaskDataset, samples: int, epoch: int) -> np.ndarray:
    """Seconds of one epoch, (samples, 2): loading with checks, and the pipeline."""
    seconds = np.zeros((samples, len(STAGES)))
    for number in range(samples):
        # The times of the two steps of dataset[index], with its random numbers.
        load, run_pipeline = dataset.load, dataset.run_pipeline
        dataset.load, dataset.run_pipeline = _timed(load, seconds[number], 0), _timed(run_pipeline, seconds[number], 1)
        try:
            dataset[EpochIndex(number, epoch, 0)]
        finally:
            del dataset.load, dataset.run_pipeline
    return seconds


def _timed(function, seconds: np.ndarray, stage: int):
    def run(*arguments):
        start = time.process_time()
        result = function(*arguments)
        seconds[stage] = time.process_time() - start
        return result

    return run


def describe(name: str, seconds: np.ndarray) -> str:
    """A line of the table, milliseconds."""
    columns = [*(1000 * seconds[:, stage] for stage in range(len(STAGES))), 1000 * seconds.sum(1)]
    cells = ['{1:6.2f} [{0:.2f}, {2:.2f}]'.format(*np.quantile(column, (0.25, 0.5, 0.75))) for column in columns]
    return f'{name:<22}' + ''.join(f'{cell:>26}' for cell in cells)


def files_of(folder: str) -> Iterator[Path]:
    """The files of a cache."""
    return (path for path in Path(folder).rglob('*') if path.is_file())


def main() -> None:
    """Measures epochs without and with a cache, in a temporary folder or ``--cache-dir``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('--split', choices=['train', 'val', 'test'], default='train')
    parser.add_argument('--samples', type=int, default=200, help='samples per epoch, the first ones (default: 200)')
    parser.add_argument('--epochs', type=int, default=3, help='epochs that count (default: 3)')
    parser.add_argument('--cache-dir', help='where the cache is made (default: a temporary folder)')
    parser.add_argument('--data-root', help='folder of the data set')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='key=value pairs that override the config')
    args = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    cfg = load_config(args.config, data_root=args.data_root, cfg_options=args.cfg_options)
    init_default_scope(cfg.get('default_scope', 'mmrepmtl'))
    settings = copy.deepcopy(dataset_of(cfg, args.split, 'benchmark'))
    settings.pop('cache_dir', None)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.cache_dir or temporary
        plain, cached = DATASETS.build(settings), DATASETS.build(settings | dict(cache_dir=folder))
        samples = min(args.samples, len(plain))
        measure(plain, samples, 0)
        first = measure(cached, samples, 0)
        # In turn, so that what else runs on the machine disturbs both alike.
        times = [
            (measure(plain, samples, epoch), measure(cached, samples, epoch)) for epoch in range(1, args.epochs + 1)
        ]
        uncached, later = (np.concatenate(part) for part in zip(*times, strict=True))
        size = sum(path.stat().st_size for path in files_of(folder)) / 1e6
    print(f'{type(plain).__name__}, {args.split}: {samples} samples, {args.epochs} epochs; ms per sample on one core')
    print(f'{"":<22}' + ''.join(f'{name:>26}' for name in (*STAGES, 'together')))
    print(describe('decoded', uncached))
    print(describe('cache, first epoch', first))
    print(describe('cache, later epochs', later))
    ratios = (np.median(uncached[:, 0]) / np.median(later[:, 0]), np.median(uncached.sum(1)) / np.median(later.sum(1)))
    print(f'with the cache: loading {ratios[0]:.1f} times faster, together {ratios[1]:.1f} times')
    print(f'size of the cache: {size / samples:.2f} MB per sample, {size / samples * len(plain) / 1000:.2f} GB for all')


if __name__ == '__main__':
    main()
