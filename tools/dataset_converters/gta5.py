#!/usr/bin/env python
"""Reduces the official GTA5 to image/<id>.png and label/<id>.png with the 19 classes of Cityscapes.

SRC holds images and labels. Images are reduced by area and stored in 8 bits; labels take the nearest pixel and are
stored as 8-bit grey, 255 void. The default size is that of Cityscapes: tasks that share a representation need one.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from mmrepmtl.datasets.conversion import Plan, fit_sample, pair_files, run_converter
from mmrepmtl.datasets.gta5 import GTA5Dataset, check_size, raw_files

SIZE = (128, 256)
COUNTS = dict(all=GTA5Dataset.OFFICIAL_COUNTS['all'])
FOLDERS = dict(image='image', semseg='label')
TARGETS = GTA5Dataset.METAINFO['targets']
READERS = {name: files.reader for name, files in raw_files(Path()).items()}


def load(size: tuple[int, int], paths: Mapping[str, Path], names: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays to write for one screenshot."""
    arrays = {name: READERS[name](str(path)) for name, path in paths.items()}
    img, gt = arrays.pop('image'), arrays
    for name, value in gt.items():
        # Those that differ by a few pixels are fitted to the new size by themselves.
        check_size(value, img.shape[:2], str(paths[name]), str(paths['image']))
    img, gt = fit_sample(img, gt, TARGETS, size, paths)
    return dict(image=np.round(img * 255).astype(np.uint8)) | {
        name: value.astype(np.uint8) for name, value in gt.items()
    }


def make_plan(src: Path, dst: Path, size: tuple[int, int]) -> Plan:
    """All screenshots."""
    samples, problems = pair_files(
        raw_files(src), dict(image='image', semseg='semseg'), lambda name, _, stem: dst / FOLDERS[name] / f'{stem}.png'
    )
    return Plan(partial(load, size), dict(all=samples), COUNTS, problems, dict(converter='gta5', version=1))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the tool; ``argv`` are its arguments, by default those of the process."""
    return run_converter(__doc__, make_plan, SIZE, argv)


if __name__ == '__main__':
    sys.exit(main())
