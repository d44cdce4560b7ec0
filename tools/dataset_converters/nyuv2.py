#!/usr/bin/env python
"""Converts NYUv2's official nyu_depth_v2_labeled.mat to {train,val}/{image,label,depth,normal}/<i>.npy.

SRC holds nyu_depth_v2_labeled.mat, splits.mat, classMapping40.mat and class13Mapping.mat. Images are reduced by area,
labels and depth take the nearest pixel; normals are derived from the depth at its full size. <i> counts from 0 in the
order of the official ids, which are in conversion.json.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from mmrepmtl.datasets.conversion import Plan, Sample, archive_array, fit_sample, run_converter
from mmrepmtl.datasets.nyuv2 import FOLDERS, NYUv2Dataset
from mmrepmtl.datasets.nyuv2_mat import NYUv2Mat, kinect_normals

SIZE = (288, 384)
COUNTS = {split: NYUv2Dataset.OFFICIAL_COUNTS[split] for split in ('train', 'val')}
TARGETS = NYUv2Dataset.METAINFO['targets']


def load(mat: NYUv2Mat, size: tuple[int, int], number: int, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays to write for one image."""
    sample = mat.read(number)
    img, gt = sample.pop('image'), sample
    if 'normal' in names:
        gt['normal'] = kinect_normals(gt['depth'])
    paths = dict.fromkeys(FOLDERS, f'{mat.path}: image {number}')
    img, gt = fit_sample(img, gt, TARGETS, size, paths)
    return dict(image=img) | {name: archive_array(value, TARGETS[name]['kind']) for name, value in gt.items()}


def make_plan(src: Path, dst: Path, size: tuple[int, int]) -> Plan:
    """All images of both splits that are in the file."""
    mat = NYUv2Mat(src)
    samples = {}
    for split, numbers in mat.splits.items():
        there = [number for number in numbers if number <= mat.count]
        samples[split] = [
            Sample(
                f'{number:04d}',
                number,
                {name: dst / split / folder / f'{i}.npy' for name, folder in FOLDERS.items()},
            )
            for i, number in enumerate(there)
        ]
    return Plan(partial(load, mat, size), samples, COUNTS, settings=dict(converter='nyuv2', version=1))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the tool; ``argv`` are its arguments, by default those of the process."""
    return run_converter(__doc__, make_plan, SIZE, argv)


if __name__ == '__main__':
    sys.exit(main())
