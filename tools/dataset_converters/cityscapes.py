#!/usr/bin/env python
"""Converts the official Cityscapes to MTAN's archive, {train,val}/{image,label_7,label_19,depth}/<i>.npy.

SRC holds leftImg8bit, gtFine and disparity. Images are reduced by area; labels and disparity take the nearest pixel.
Depth is inverse depth in the unit of the archive, the 16-bit number of the disparity file over 65535, 0 invalid. <i>
counts from 0 in the order of the official names, which are in conversion.json.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from mmrepmtl.datasets.cityscapes import (
    HIGHEST_LABEL_ID,
    CityscapesDataset,
    classes_of_label_ids,
    declare_targets,
    label_lookup,
    raw_files,
    read_disparity,
)
from mmrepmtl.datasets.conversion import Plan, archive_array, fit_sample, pair_files, run_converter
from mmrepmtl.datasets.readers import read_picture_image, read_picture_indices

SIZE = (128, 256)
COUNTS = {split: CityscapesDataset.OFFICIAL_COUNTS[split] for split in ('train', 'val')}
# Which official file each of the archive's folders is made from, and how it is declared.
MADE_FROM = dict(image='image', label_7='semseg', label_19='semseg', depth='depth')
TARGETS = dict(
    label_7=declare_targets(7)['semseg'], label_19=declare_targets(19)['semseg'], depth=declare_targets(7)['depth']
)


def load(size: tuple[int, int], paths: Mapping[str, Path], names: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays to write for one frame."""
    gt = {}
    if 'semseg' in paths:
        ids, file = read_picture_indices(str(paths['semseg'])), str(paths['semseg'])
        for count in (7, 19):
            gt[f'label_{count}'] = classes_of_label_ids(ids, label_lookup(count, HIGHEST_LABEL_ID), file)
    if 'depth' in paths:
        gt['depth'] = read_disparity(str(paths['depth']))
    img = read_picture_image(str(paths['image']))
    for name, value in gt.items():
        if value.shape != img.shape[:2]:
            raise ValueError(
                f'{paths[MADE_FROM[name]]}: found {value.shape}, expected {img.shape[:2]}, the size of {paths["image"]}'
            )
    img, gt = fit_sample(img, gt, TARGETS, size, {name: paths.get(made) for name, made in MADE_FROM.items()})
    return dict(image=img) | {name: archive_array(value, TARGETS[name]['kind']) for name, value in gt.items()}


def make_plan(src: Path, dst: Path, size: tuple[int, int]) -> Plan:
    """All frames that have an image."""
    samples, problems = {}, []
    for split in COUNTS:
        samples[split], lacking = pair_files(
            raw_files(src, split, 19), MADE_FROM, lambda folder, i, _, split=split: dst / split / folder / f'{i}.npy'
        )
        problems += lacking
    return Plan(partial(load, size), samples, COUNTS, problems, dict(converter='cityscapes', version=1))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the tool; ``argv`` are its arguments, by default those of the process."""
    return run_converter(__doc__, make_plan, SIZE, argv)


if __name__ == '__main__':
    sys.exit(main())
