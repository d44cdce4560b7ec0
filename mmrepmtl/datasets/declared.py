"""Targets of an own data set as a config declares them: what they are and how their values are read.

Shared by ``MultiTaskFolderDataset`` and ``MultiTaskCSVDataset``.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mmrepmtl.datasets import readers
from mmrepmtl.datasets.base import check_target_names
from mmrepmtl.structures.kinds import KINDS, VOID, KindTable

_WHOLE_NUMBER = re.compile(r'\d+(\.0*)?')


def check_labels(owner: str, labels: Mapping[str, Mapping], places: Mapping[str, Sequence[str]]) -> None:
    """Checks the argument ``labels`` of an own data set.

    Args:
        owner: Class to name in errors.
        labels: {target: dict(kind=..., ...)}.
        places: {kind: keys that say where its values are}.

    Raises:
        ValueError: Nothing is declared, a name cannot be used, or a kind or an option is unknown or missing.
    """
    if not labels:
        raise ValueError(
            f'{owner}: labels is empty; declare at least one target, such as depth=dict(kind="depth", ...)'
        )
    check_target_names(labels)
    for name, label in labels.items():
        kind = label.get('kind')
        if kind is None or kind not in places:
            raise ValueError(f'{owner}: label {name!r} has the kind {kind!r}, expected one of {", ".join(places)}')
        allowed = ('kind', *KINDS[kind].options, *places[kind])
        unknown = [key for key in label if key not in allowed]
        if unknown:
            raise ValueError(
                f'{owner}: label {name!r} of kind {kind!r} has no option {unknown[0]!r}, only {", ".join(allowed)}'
            )
        missing = [key for key in KINDS[kind].required if label.get(key) is None]
        if missing:
            raise ValueError(f'{owner}: label {name!r} of kind {kind!r} must declare its {missing[0]!r}')


def declare(label: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a declaration that goes into ``metainfo['targets']``."""
    return {key: label[key] for key in ('kind', *KINDS[label['kind']].meta) if label.get(key) is not None}


def read_image(path: str) -> np.ndarray:
    """An RGB picture, or a .npy of floats in [0, 1], as (H, W, 3) float32 in [0, 1]."""
    return readers.read_npy_image(path) if _is_array(path) else readers.read_picture_image(path)


class ReadLabels:
    """Reader of the class ids of pixels, as (H, W) int64 with 255 void.

    Args:
        label: The declaration. ``ids``: the number that each class has in the files, 0 to K - 1 by default; ``void``:
            the numbers that are no class, 255 by default (unless it is one of ``ids``). Any other number is an error.

    Raises:
        ValueError: If a number in ``ids`` or ``void`` is not from 0 to 255, or occurs twice.
    """

    def __init__(self, label: Mapping[str, Any]) -> None:
        count = len(label['classes']) if KINDS[label['kind']].names else 2
        self.ids = list(range(count)) if label.get('ids') is None else list(label['ids'])
        self.void = [v for v in [VOID] if v not in self.ids] if label.get('void') is None else list(label['void'])
        if len(self.ids) != count:
            raise ValueError(f'{len(self.ids)} ids for {count} classes; give the number of each class in the files')
        numbers = [*self.ids, *self.void]
        if len(set(numbers)) < len(numbers) or any(number not in range(256) for number in numbers):
            raise ValueError(f'ids {self.ids} and void {self.void} must be different numbers from 0 to 255')
        self.lookup = np.full(256, -1, np.int64)
        self.lookup[self.ids] = np.arange(count)
        self.lookup[self.void] = VOID

    def __call__(self, path: str) -> np.ndarray:
        stored = readers.read_npy_label(path) if _is_array(path) else readers.read_picture_indices(path)
        if stored.dtype == np.uint8:
            label = self.lookup[stored]
        else:
            label = np.where((stored >= 0) & (stored <= 255), self.lookup[np.clip(stored, 0, 255)], -1)
        if (label < 0).any():
            raise ValueError(
                f'{path}: found the label ids {np.unique(stored[label < 0])[:5].tolist()}, expected '
                f'{_ranges(self.ids)}' + (f', or {_ranges(self.void)} (void)' if self.void else '')
            )
        return label


class ReadDepth:
    """Reader of depth maps, as (H, W) float32 with 0 invalid.

    Args:
        label: The declaration. ``scale``: how many of the files' units are one metre (or other unit of the target).

    Raises:
        ValueError: If ``scale`` is not positive.
    """

    def __init__(self, label: Mapping[str, Any]) -> None:
        self.scale = label.get('scale')
        if self.scale is not None and not self.scale > 0:
            raise ValueError(f'scale is {self.scale}, expected a positive number of stored units per unit')

    def __call__(self, path: str) -> np.ndarray:
        if _is_array(path):
            stored = readers.read_npy(path, '(H, W) or (H, W, 1) depth')
        else:
            stored = readers.read_picture(path, cv2.IMREAD_UNCHANGED, np.uint16, 'a 16-bit grey picture of depth')
        if self.scale is None and stored.dtype.kind in 'iu':
            raise ValueError(
                f'{path}: found whole numbers; declare scale=..., the units stored per metre (1000 for mm)'
            )
        depth = np.divide(stored, self.scale or 1, dtype=np.float32)
        return depth[..., 0] if depth.ndim == 3 and depth.shape[2] == 1 else depth


def read_normals(path: str) -> np.ndarray:
    """A picture or array of normals as (H, W, 3) float32 of unit length, 0 0 0 invalid."""
    return readers.read_npy_normal(path) if _is_array(path) else readers.read_picture_normal(path)


class ClassNames:
    """Classes of an image by name or id.

    A text that is the name of a class is that class. A whole number ('3', or '3.0' as spreadsheets write it) is an id,
    unless some class has a whole number other than its id for a name.

    Args:
        names: In the order of the ids.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.index = {name: number for number, name in enumerate(self.names)}
        self.takes_ids = not any(
            _WHOLE_NUMBER.fullmatch(name) and name != str(number) for number, name in enumerate(self.names)
        )

    def parse(self, text: str, where: str) -> int:
        """The id of the class that ``text`` names.

        Raises:
            ValueError: Beginning with ``where``, saying what was found and expected.
        """
        text = text.strip()
        if text in self.index:
            return self.index[text]
        if self.takes_ids and _WHOLE_NUMBER.fullmatch(text) and int(float(text)) < len(self.names):
            return int(float(text))
        shown = ', '.join(self.names[:8]) + (', ...' if len(self.names) > 8 else '')
        ids = f', or an id from 0 to {len(self.names) - 1}' if self.takes_ids else ''
        raise ValueError(f'{where}: found {text!r}, expected one of the {len(self.names)} classes {shown}{ids}')


def names_in_data(texts: Iterable[str], where: str) -> tuple[str, ...]:
    """The classes that the data's own labels make up: names, sorted; or '0' to 'K - 1' if all are whole numbers.

    Raises:
        ValueError: If there are none; if whole numbers leave some out, so that they may be no class ids.
    """
    found = {text.strip() for text in texts} - {''}
    if not found:
        raise ValueError(f'{where}: there is no label to take the classes from; declare classes=[...]')
    if not all(_WHOLE_NUMBER.fullmatch(text) for text in found):
        return tuple(sorted(found))
    ids = {int(float(text)) for text in found}
    if ids != set(range(len(ids))):
        gap = next(number for number in range(len(ids)) if number not in ids)
        raise ValueError(
            f'{where}: found {len(ids)} different numbers up to {max(ids)}, but no {gap}; declare classes=[...], whose '
            'positions are the ids'
        )
    return tuple(str(number) for number in range(len(ids)))


def listed_classes(owner: str, name: str, classes: str | Sequence[str], root: str) -> tuple[str, ...]:
    """The declared classes of a label: a list, or the name of a text file with one per line, below ``root``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there are none, or one is there twice.
    """
    if isinstance(classes, str):
        path = Path(root, Path(classes).expanduser())
        if not path.is_file():
            raise FileNotFoundError(f'{owner}: label {name!r}: there is no file {path} of classes, one per line')
        classes = [line.strip() for line in path.read_text(encoding='utf-8-sig').splitlines() if line.strip()]
    names = tuple(str(item) for item in classes)
    twice = [item for item in dict.fromkeys(names) if names.count(item) > 1]
    if twice or not names:
        raise ValueError(f'{owner}: label {name!r} has ' + (f'the class {twice[0]!r} twice' if twice else 'no classes'))
    return names


class ReadClass:
    """Reader of a text file with the name or id of a class."""

    def __init__(self, classes: ClassNames) -> None:
        self.classes = classes

    def __call__(self, path: str) -> int:
        return self.classes.parse(read_text(path), path)


class ReadNumbers:
    """Reader of a text file or .npy with ``count`` numbers, as (count,) float32."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, path: str) -> np.ndarray:
        numbers: np.ndarray | list[float]
        if _is_array(path):
            numbers = readers.read_npy(path, f'({self.count},) numbers').ravel()
        else:
            numbers = [parse_number(text, path) for text in re.split(r'[,;\s]+', read_text(path)) if text]
        if len(numbers) != self.count:
            raise ValueError(f'{path}: found {len(numbers)} numbers, expected {self.count}')
        return np.asarray(numbers, np.float32)


#: Functions of a declaration. Each returns the reader of a file, from its path to the array of ``MultiTaskDataset``.
FILE_READERS: KindTable[Callable[[Mapping[str, Any]], Callable[[str], Any]]] = KindTable(
    'mmrepmtl.datasets.declared.FILE_READERS',
    dict(
        segmentation=ReadLabels,
        binary=ReadLabels,
        depth=ReadDepth,
        normals=lambda label: read_normals,
        classification=lambda label: ReadClass(ClassNames(label.get('classes') or ())),
        regression=lambda label: ReadNumbers(len(label['names'])),
    ),
)


def file_reader(owner: str, name: str, label: Mapping[str, Any]) -> Callable[[str], Any]:
    """The reader of a target's files; errors in the declaration name the class and the label."""
    try:
        return FILE_READERS[label['kind']](label)
    except ValueError as error:
        raise ValueError(f'{owner}: label {name!r}: {error}') from error


def read_text(path: str) -> str:
    """The text of a UTF-8 file, without the white space around it.

    Raises:
        ValueError: If it is no text.
    """
    try:
        return Path(path).read_text(encoding='utf-8-sig').strip()
    except UnicodeDecodeError as error:
        raise ValueError(f'{path}: cannot be read as text ({error})') from error


def refuse_own_classes(owner: str, target: str, advice: str) -> None:
    """Raises ValueError: classes of a test split that come from itself may be numbered otherwise than in training."""
    raise ValueError(
        f'{owner}: label {target!r} needs classes=[...] here: taken from the files of this split alone, their numbers '
        f'may differ from those of the training split. {advice}'
    )


def parse_number(text: str, where: str) -> float:
    """A finite number; NaN for an empty text or 'nan'.

    Raises:
        ValueError: Beginning with ``where``.
    """
    text = text.strip()
    try:
        value = float(text) if text else float('nan')
    except ValueError:
        raise ValueError(f'{where}: found {text!r}, expected a number') from None
    if abs(value) > float(np.finfo(np.float32).max):
        raise ValueError(f'{where}: found {text!r}, expected a number that float32 can hold')
    return value


def _is_array(path: str) -> bool:
    return path.lower().endswith('.npy')


def _ranges(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 3, 7] as '0 to 3, 7'."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ', '.join(str(part[0]) if len(part) == 1 else f'{part[0]} to {part[-1]}' for part in parts)
