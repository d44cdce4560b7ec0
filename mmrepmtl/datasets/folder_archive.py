import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmrepmtl.datasets.base import MultiTaskDataset
from mmrepmtl.datasets.readers import list_files


@dataclass(frozen=True)
class FileSet:
    """The files of one modality.

    Args:
        folder: The folder that they are in.
        endings: The rest of a file's name after the sample's, '.png' or '_gtFine_labelIds.png'; case is ignored.
        reader: From a path to the value of ``MultiTaskDataset``'s table: an array or a number; None for unlabelled.
        nested: Whether the files are one level deeper, in folders of any name.
    """

    folder: Path
    endings: tuple[str, ...]
    reader: Callable[[str], Any]
    nested: bool = False

    def paths(self) -> dict[str, Path]:
        """{name of the sample: file}."""
        return list_files(self.folder, [ending.lower() for ending in self.endings], self.nested)

    def expected(self) -> list[str]:
        """Names of files as they would be, for error messages."""
        return [f'{"*/" if self.nested else ""}<i>{ending}' for ending in self.endings]


class FolderArchiveDataset(MultiTaskDataset):
    """Base of the data sets that hold one file per sample and modality, matched by name.

    A subclass says in :meth:`layouts` where the files of its layouts are and how they are read. The images decide which
    samples there are; samples are ordered by name, numbers in it by value.

    Args:
        layout: Name of a layout, or 'auto' which takes the first one that has images.
        allow_unlabelled: Whether a missing target file means "unlabelled" instead of an error.
        **kwargs: Those of ``MultiTaskDataset``.

    Raises:
        ValueError: On an unknown layout, or a file that holds something else than it should.
        FileNotFoundError: If folders or files are missing, naming what was expected.
    """

    LAYOUTS: tuple[str, ...] = ()

    def __init__(self, layout: str = 'auto', allow_unlabelled: bool = False, **kwargs: Any) -> None:
        if layout not in ('auto', *self.LAYOUTS):
            *others, last = [repr(name) for name in ('auto', *self.LAYOUTS)]
            raise ValueError(f'{type(self).__name__}: layout is {layout!r}, expected {", ".join(others)} or {last}')
        self.layout = layout
        self.allow_unlabelled = allow_unlabelled
        self._readers: dict[str, Callable[[str], np.ndarray]] = {}
        super().__init__(**kwargs)

    @abstractmethod
    def layouts(self) -> Mapping[str, Mapping[str, FileSet]]:
        """{layout: {'image' or target: its files}} in the order in which 'auto' tries them."""

    def load_data_list(self) -> list[dict]:
        """One dict of paths per sample: ``image`` and the targets' names."""
        files, images = self._find_images()
        names = self.select_names(sorted(images, key=_natural_order))
        self._readers = {name: files[name].reader for name in ('image', *self.targets)}
        found = {target: files[target].paths() for target in self.targets}
        if not self.allow_unlabelled:
            for target, paths in found.items():
                self._expect_all(files[target], names, paths)
        samples = []
        for name in names:
            labelled = {target: str(paths[name]) for target, paths in found.items() if name in paths}
            samples.append(dict(paths=dict(image=str(images[name])) | labelled))
        return samples

    def select_names(self, names: list[str]) -> list[str]:
        """The samples of this split among all that have an image; all of them unless a subclass knows better."""
        return names

    def load_sample(self, data_info: dict) -> dict:
        """See :meth:`MultiTaskDataset.load_sample`."""
        paths = dict(data_info['paths'])
        values = {name: self._readers[name](path) for name, path in paths.items()}
        return dict(img=values.pop('image'), img_path=paths['image'], gt=values, gt_paths=paths)

    def _find_images(self) -> tuple[Mapping[str, FileSet], dict[str, Path]]:
        layouts = self.layouts()
        if self.layout != 'auto':
            layouts = {self.layout: layouts[self.layout]}
        for files in layouts.values():
            images = files['image'].paths()
            if images:
                return files, images
        tried = [files['image'] for files in layouts.values()]
        folders = dict.fromkeys(str(files.folder) for files in tried)
        raise FileNotFoundError(
            f'{type(self).__name__}: no images in {" or ".join(folders)}, expected files '
            f'{" or ".join(dict.fromkeys(name for files in tried for name in files.expected()))} '
            f'(layout {self.layout!r})'
        )

    def _expect_all(self, files: FileSet, names: Sequence[str], found: Mapping[str, Path]) -> None:
        missing = [name for name in names if name not in found]
        if missing:
            raise FileNotFoundError(
                f'{type(self).__name__}: {len(missing)} of {len(names)} files are missing in {files.folder}, the first '
                f'is {missing[0]}{files.endings[0]}; leave the target out with targets=[...], or pass '
                'allow_unlabelled=True'
            )


def _natural_order(name: str) -> tuple:
    """Sorts '2' before '10', and letters as they are."""
    return [int(part) if part.isdecimal() else part for part in re.split(r'(\d+)', name)], name
