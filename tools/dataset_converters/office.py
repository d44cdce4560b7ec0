#!/usr/bin/env python
"""Brings Office-31 or Office-Home to the layout that Office31Dataset and OfficeHomeDataset read.

SRC is the official archive (.zip, .tar.gz) or a folder, with DOMAIN/images/CLASS/*.jpg or DOMAIN/CLASS/*.jpg at any
depth. DST gets the images, unchanged (DOMAIN/images/CLASS in Office-31, DOMAIN/CLASS in Office-Home), and
splits/DOMAIN_{train,val,test}.txt. The published numbers are on published lists: pass their folder as --splits. Without
it 60/20/20 splits are made, by class and always the same, which are NOT the published ones.
"""

import argparse
import os
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from mmrepmtl.datasets import Office31Dataset, OfficeHomeDataset
from mmrepmtl.datasets.conversion import (
    SHOWN_FAILURES,
    USER_ERRORS,
    ProgressLines,
    Sample,
    claim_folder,
    remove_leftovers,
)
from mmrepmtl.datasets.office import SPLITS, OfficeDataset, class_names, domain_folder, read_split
from mmrepmtl.datasets.pictures import decode_bytes
from mmrepmtl.utils.files import whole_file

ENDINGS = ('.jpg', '.jpeg', '.png')
SHARES = (0.6, 0.2)
CHUNK = 256
# Folder of the images within a domain's folder.
INNER = {Office31Dataset: ('images',), OfficeHomeDataset: ()}

Read = Callable[[str], bytes]
Lists = dict[tuple[str, str], list[tuple[str, int]]]


@contextmanager
def open_source(src: Path) -> Iterator[tuple[list[str], Read]]:
    """Gives the names of the files in a folder or an archive, in its order, and a function that reads one."""
    if src.is_dir():
        yield (
            sorted(path.relative_to(src).as_posix() for path in src.rglob('*') if path.is_file()),
            (lambda name: (src / name).read_bytes()),
        )
    elif not src.is_file():
        raise ValueError(f'there is no {src}; expected the official archive or a folder')
    elif zipfile.is_zipfile(src):
        with zipfile.ZipFile(src) as archive:
            yield [info.filename for info in archive.infolist() if not info.is_dir()], archive.read
    elif tarfile.is_tarfile(src):
        with tarfile.open(src) as archive:
            members = {member.name: member for member in archive.getmembers() if member.isfile()}
            yield list(members), lambda name: archive.extractfile(members[name]).read()
    else:
        raise ValueError(f'{src}: cannot be read, expected a .zip or .tar archive, or a folder')


def place(name: str) -> tuple[type[OfficeDataset], str] | None:
    """The data set that a file belongs to and its path below DST; None if it is no image of a domain."""
    *folders, file = PurePosixPath(name).parts
    if PurePosixPath(file).suffix.lower() not in ENDINGS or file.startswith('.'):
        return None
    if len(folders) >= 3 and folders[-2] == 'images':
        del folders[-2]
    if len(folders) < 2:
        return None
    domain, class_name = domain_folder(folders[-2]), folders[-1]
    for kind, inner in INNER.items():
        if domain in kind.DOMAINS:
            return kind, PurePosixPath(domain, *inner, class_name, file).as_posix()
    return None


def find_images(names: Sequence[str]) -> tuple[type[OfficeDataset], dict[str, str]]:
    """The data set, and {path below DST: name in the source}, in the order of the source."""
    images: dict[str, str] = {}
    kinds = set()
    for name in names:
        if (placed := place(name)) is None:
            continue
        kind, path = placed
        if path in images:
            raise ValueError(f'{name} and {images[path]} would both be {path}; give only one copy of the images')
        kinds.add(kind)
        images[path] = name
    if len(kinds) != 1:
        domains = ', '.join(domain for kind in INNER for domain in kind.DOMAINS)
        found = 'images of both data sets' if kinds else 'no images'
        raise ValueError(f'found {found} in DOMAIN/[images/]CLASS/, expected one of the data sets; domains: {domains}')
    return kinds.pop(), images


def read_lists(kind: type[OfficeDataset], folder: Path) -> Lists:
    """The published lists, with paths as they are below DST."""
    lists = {}
    for domain in kind.DOMAINS:
        lines = {split: read_split(folder / f'{domain}_{split}.txt', kind.NUM_CLASSES) for split in SPLITS}
        class_names([line for part in lines.values() for line in part], kind.NUM_CLASSES)
        for split, part in lines.items():
            for line in part:
                placed = place(line.image)
                if placed is None or not placed[1].startswith(f'{domain}/'):
                    raise ValueError(f'{line.where}: found {line.image}, expected an image of {domain}')
            lists[domain, split] = [(place(line.image)[1], line.label) for line in part]
    return lists


def make_lists(kind: type[OfficeDataset], images: Mapping[str, str]) -> Lists:
    """60/20/20 by class, with labels in the order of the class names; a function of the names of the images alone."""
    classes: dict[str, dict[str, list[str]]] = {domain: {} for domain in kind.DOMAINS}
    for path in sorted(images):
        classes[path.split('/')[0]].setdefault(PurePosixPath(path).parent.name, []).append(path)
    labels = {name: label for label, name in enumerate(sorted({name for found in classes.values() for name in found}))}
    if len(labels) > kind.NUM_CLASSES:
        raise ValueError(f'found {len(labels)} classes, expected {kind.NUM_CLASSES}')
    lists: Lists = {(domain, split): [] for domain in kind.DOMAINS for split in SPLITS}
    for domain, found in classes.items():
        for name, paths in found.items():
            rng = np.random.Generator(np.random.PCG64(zlib.crc32(f'{domain}/{name}'.encode())))
            order = [paths[i] for i in rng.permutation(len(paths))]
            ends = np.rint(np.cumsum([0, *SHARES]) * len(order)).astype(int).tolist() + [len(order)]
            for split, start, stop in zip(SPLITS, ends[:-1], ends[1:], strict=True):
                lists[domain, split] += [(path, labels[name]) for path in order[start:stop]]
    return lists


def find_problems(kind: type[OfficeDataset], lists: Lists, images: Mapping[str, str], published: bool) -> list[str]:
    """Lists the differences from the official counts, one sentence each."""
    problems = []
    for domain, official in kind.OFFICIAL_COUNTS.items():
        counts = [sum(path in images for path, _ in lists[domain, split]) for split in SPLITS]
        if published and counts != list(official):
            for split, count, expected in zip(SPLITS, counts, official, strict=True):
                if count != expected:
                    problems.append(f'{domain} {split}: {count} of {expected} images')
        elif not published and sum(counts) != sum(official):
            problems.append(f'{domain}: {sum(counts)} of {sum(official)} images')
    return problems


def copy_image(sample: Sample, content: bytes) -> str | None:
    """Writes an image if it can be decoded; returns what was wrong, None if nothing was."""
    try:
        decode_bytes(np.frombuffer(content, np.uint8), str(sample.source), cv2.IMREAD_COLOR, 'an RGB image')
    except ValueError as error:
        return str(error)
    try:
        with whole_file(sample.files['image']) as file:
            file.write(content)
    except OSError as error:
        return str(error)
    return None


def copy_all(samples: Sequence[Sample], read: Read, workers: int, report: Callable[[int, int], None]) -> list[str]:
    """Copies what is missing; the archive is read in its order, images are checked and written in parallel."""
    todo = [sample for sample in samples if sample.missing()]
    report(0, len(todo))
    failures: list[str] = []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for start in range(0, len(todo), CHUNK):
            chunk = todo[start : start + CHUNK]
            try:
                contents = [read(sample.source) for sample in chunk]
            except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
                raise ValueError(f'the archive is damaged near {chunk[0].source}: {error}') from error
            failures += [failure for failure in pool.map(copy_image, chunk, contents) if failure is not None]
            report(start + len(chunk), len(todo))
    return failures


def convert(args: argparse.Namespace) -> list[str]:
    """Does the conversion; returns one sentence per image that failed."""
    with open_source(args.src) as (names, read):
        kind, images = find_images(names)
        published = args.splits is not None
        lists = read_lists(kind, args.splits) if published else make_lists(kind, images)
        problems = find_problems(kind, lists, images, published)
        if problems and not args.allow_partial:
            raise ValueError(
                f'the source is not complete: {"; ".join(problems)}. Pass --allow-partial to convert a part'
            )
        lists = {key: [line for line in part if line[0] in images] for key, part in lists.items()}
        wanted = {path for part in lists.values() for path, _ in part}
        samples = [Sample(path, name, {'image': args.dst / path}) for path, name in images.items() if path in wanted]
        # A split without images would be refused when it is read.
        by_file = {f'{domain}_{split}.txt': part for (domain, split), part in lists.items() if part}
        claim_folder(args.dst, dict(converter='office', version=1, data_set=kind.FOLDER, samples=by_file))
        remove_leftovers(samples)
        failures = copy_all(samples, read, args.workers, ProgressLines())
    if failures:
        return failures
    # Last, so that a conversion that was interrupted cannot be taken for a whole one.
    for file, part in by_file.items():
        with whole_file(args.dst / 'splits' / file) as opened:
            opened.write(''.join(f'{path} {label}\n' for path, label in part).encode())
    for domain, official in kind.OFFICIAL_COUNTS.items():
        counts = '/'.join(str(len(lists[domain, split])) for split in SPLITS)
        print(f'{domain}: {counts} images in {"/".join(SPLITS)} (published: {"/".join(map(str, official))})')
    if len(images) > len(wanted):
        print(f'{len(images) - len(wanted)} images of the source are in no list and were left out')
    if not published:
        print('The splits were made here: they are NOT the published ones, and neither are numbers on them comparable.')
    return []


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the tool; ``argv`` are its arguments, by default those of the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('src', type=Path, help='official archive, or folder')
    parser.add_argument('dst', type=Path, help='folder to write; a second run goes on where the first one ended')
    parser.add_argument('--splits', type=Path, metavar='DIR', help='folder of DOMAIN_{train,val,test}.txt')
    workers = min(8, os.cpu_count() or 1)
    parser.add_argument('--workers', type=int, default=workers, help=f'threads (default: {workers})')
    parser.add_argument('--allow-partial', action='store_true', help='convert a source that is not complete')
    args = parser.parse_args(argv)
    try:
        failures = convert(args)
    except USER_ERRORS as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    for failure in failures[:SHOWN_FAILURES]:
        print(f'error: {failure}', file=sys.stderr)
    if failures:
        print(f'error: {len(failures)} images failed; no splits were written', file=sys.stderr)
    return 1 if failures else 0


if __name__ == '__main__':
    sys.exit(main())
