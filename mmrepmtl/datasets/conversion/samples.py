"""The plan of a converter: its samples, the official counts, and the run that a folder belongs to."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmrepmtl.datasets.folder_archive import FileSet
from mmrepmtl.utils.files import TEMPORARY, whole_file

SETTINGS_FILE = 'conversion.json'


@dataclass(frozen=True)
class Sample:
    """One sample to convert.

    Args:
        name: Its name in the source.
        source: What ``Plan.load`` needs to load it; travels to the worker processes.
        files: {modality: file to write}.
    """

    name: str
    source: Any
    files: Mapping[str, Path]

    def missing(self) -> dict[str, Path]:
        """The files that are not there yet."""
        return {name: path for name, path in self.files.items() if not path.exists()}


@dataclass(frozen=True)
class Plan:
    """The plan of a converter.

    Args:
        load: From a sample's source and the names of modalities to {modality: array to write}, see :func:`save_array`.
        samples: {split: its samples}.
        official: {split: how many there should be}.
        problems: Whatever else the source lacks, one sentence each.
        settings: Everything that the files depend on, besides the names of the samples.
    """

    load: Callable[[Any, Sequence[str]], Mapping[str, np.ndarray]]
    samples: Mapping[str, Sequence[Sample]]
    official: Mapping[str, int]
    problems: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def all_samples(self) -> list[Sample]:
        """The samples of all splits."""
        return [sample for samples in self.samples.values() for sample in samples]


def pair_files(
    sets: Mapping[str, FileSet], made_from: Mapping[str, str], file_of: Callable[[str, int, str], Path]
) -> tuple[list[Sample], list[str]]:
    """Samples of a source with one file per sample and modality.

    Args:
        sets: {modality of the source: its files}; 'image' decides which samples there are.
        made_from: {modality to write: modality of the source}; a file is written where its source is there.
        file_of: From (modality to write, position of the sample in the order of the names, name) to the file to write.

    Returns:
        tuple: The samples, whose ``source`` is {modality of the source: file}, and one sentence per modality that
        lacks files.
    """
    found = {modality: files.paths() for modality, files in sets.items()}
    names = sorted(found['image'])
    problems = [] if names else [f'no images in {sets["image"].folder}, expected {sets["image"].expected()[0]}']
    for modality, files in sets.items():
        missing = [name for name in names if name not in found[modality]]
        if missing:
            problems.append(
                f'{len(missing)} of {len(names)} files are missing in {files.folder}, the first is '
                f'{missing[0]}{files.endings[0]}'
            )
    samples = []
    for index, name in enumerate(names):
        source = {modality: paths[name] for modality, paths in found.items() if name in paths}
        written = {made: file_of(made, index, name) for made, modality in made_from.items() if modality in source}
        samples.append(Sample(name, source, written))
    return samples, problems


def check_source(plan: Plan, allow_partial: bool) -> None:
    """Compares what the source has with the official counts.

    Raises:
        ValueError: If there are no samples at all; if something is missing and ``allow_partial`` is False.
    """
    if not plan.all_samples():
        raise ValueError('; '.join(plan.problems) or 'the source holds no samples')
    counts = [
        f'{split}: {len(plan.samples.get(split, ()))} of {count} samples'
        for split, count in plan.official.items()
        if len(plan.samples.get(split, ())) != count
    ]
    lacking = [*counts, *plan.problems]
    if lacking and not allow_partial:
        raise ValueError(f'the source is not complete: {"; ".join(lacking)}. Pass --allow-partial to convert a part')


def claim_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Makes a folder this conversion's own, so that a later run goes on with the same settings or not at all.

    Raises:
        ValueError: If the folder holds something else, or was begun with other settings.
    """
    file = folder / SETTINGS_FILE
    settings = json.loads(json.dumps(settings))
    if file.exists():
        before = json.loads(file.read_text(encoding='utf-8'))
        differing = sorted(key for key in {*before, *settings} if before.get(key) != settings.get(key))
        if differing:
            details = [
                f'{key}: {before.get(key)!r} there, {settings.get(key)!r} now' if key != 'samples' else 'other samples'
                for key in differing
            ]
            raise ValueError(
                f'{file}: the conversion was begun with other settings ({"; ".join(details)}); its files do not go '
                'together with new ones, so use another folder or remove this one'
            )
        return
    if folder.is_dir() and any(not child.name.endswith(TEMPORARY) for child in folder.iterdir()):
        raise ValueError(f'{folder} is not empty and was not made by this converter (it has no {SETTINGS_FILE})')
    with whole_file(file) as opened:
        opened.write(json.dumps(settings, indent=1).encode())


def remove_leftovers(samples: Sequence[Sample]) -> None:
    """Removes what a killed run had begun to write."""
    for folder in {path.parent for sample in samples for path in sample.files.values()}:
        for leftover in folder.glob(f'.*{TEMPORARY}') if folder.is_dir() else ():
            leftover.unlink(missing_ok=True)


def summarise(plan: Plan) -> list[str]:
    """One line per split: how many files of each modality are there."""
    lines = []
    for split, samples in plan.samples.items():
        names = dict.fromkeys(name for sample in samples for name in sample.files)
        counts = {name: sum(name in s.files and s.files[name].exists() for s in samples) for name in names}
        there = ', '.join(f'{name} {count}' for name, count in counts.items())
        lines.append(f'{split}: {there or "nothing"} (official count: {plan.official.get(split, "none")})')
    return lines
