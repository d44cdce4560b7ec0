#!/usr/bin/env python
"""Prepares the PASCAL-Context archive of ASTMT: .mat files become PNGs, one folder per target.

SRC is the unpacked archive (JPEGImages, ImageSets, pascal-context, ...). DST gets
{train,val}/{image,semseg,human_parts,saliency,edge,normal}/<id>.{jpg,png}; nothing is resized, images are copied.
Labels are 8-bit grey, 255 void, and an image without people has void parts everywhere; normals keep their numbers,
0 0 0 where they are invalid.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np

from mmrepmtl.datasets.checks import VOID, check_target
from mmrepmtl.datasets.conversion import Plan, Sample, run_converter
from mmrepmtl.datasets.folder_archive import FileSet
from mmrepmtl.datasets.pascal_context import (
    FOLDERS,
    PASCALContextDataset,
    archive_files,
    read_coded_normals,
    split_names,
    valid_coded_normals,
)

COUNTS = {split: PASCALContextDataset.OFFICIAL_COUNTS[split] for split in ('train', 'val')}
TARGETS = PASCALContextDataset.METAINFO['targets']
# One look at the list of images with people for all samples.
_files = cache(archive_files)


def load(root: Path, source: tuple[str, Mapping[str, Path]], names: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays to write for one image."""
    split, paths = source
    files = _files(root, split)
    size = files['image'].reader(str(paths['image'])).shape[:2]
    arrays = {}
    for name in names:
        path = str(paths[name])
        if name == 'image':
            arrays[name] = np.frombuffer(paths[name].read_bytes(), dtype=np.uint8)
        elif name == 'normal':
            arrays[name] = _coded_normals(path, root, size)
        else:
            arrays[name] = _label(name, files[name], path, size)
    return arrays


def _label(name: str, files: FileSet, path: str, size: tuple[int, int]) -> np.ndarray:
    value = files.reader(path)
    if value is None:  # nobody is in the picture
        return np.full(size, VOID, dtype=np.uint8)
    check_target(name, value, TARGETS[name], size, path)
    return value.astype(np.uint8)


def _coded_normals(path: str, root: Path, size: tuple[int, int]) -> np.ndarray:
    coded = read_coded_normals(path)
    if coded.shape[:2] != size:
        raise ValueError(f"{path}: target 'normal' has size {coded.shape[:2]}, expected {size}, that of its image")
    valid = valid_coded_normals(coded, path, root / 'pascal-context' / 'trainval')
    # 1 1 1 is the direction of 0 0 0, which from here on means invalid.
    return np.where(valid[..., None], np.where(coded.any(-1, keepdims=True), coded, 1), 0).astype(np.uint8)


def make_plan(src: Path, dst: Path, size: None) -> Plan:
    """All images of the two lists that are there, with the targets that are there."""
    samples, problems = {}, []
    for split in COUNTS:
        listed = split_names(src, split)
        found = {name: files.paths() for name, files in archive_files(src, split).items()}
        for modality, paths in found.items():
            missing = [name for name in listed if name not in paths]
            if missing:
                problems.append(
                    f'{split}: {len(missing)} of {len(listed)} files of {modality}, the first is {missing[0]}'
                )
        samples[split] = [_sample(dst, split, name, found) for name in listed if name in found['image']]
    return Plan(partial(load, src), samples, COUNTS, problems, dict(converter='pascal_context', version=1))


def _sample(dst: Path, split: str, name: str, found: Mapping[str, Mapping[str, Path]]) -> Sample:
    paths = {modality: found[modality][name] for modality in FOLDERS if name in found[modality]}
    files = {
        modality: dst / split / modality / f'{name}.{"jpg" if modality == "image" else "png"}' for modality in paths
    }
    return Sample(name, (split, paths), files)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the tool; ``argv`` are its arguments, by default those of the process."""
    return run_converter(__doc__, make_plan, None, argv)


if __name__ == '__main__':
    sys.exit(main())
