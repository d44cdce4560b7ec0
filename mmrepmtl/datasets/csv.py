import csv
import glob
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmrepmtl.datasets.base import MultiTaskDataset
from mmrepmtl.datasets.declared import (
    ClassNames,
    check_labels,
    declare,
    file_reader,
    listed_classes,
    names_in_data,
    parse_number,
    read_image,
    refuse_own_classes,
)
from mmrepmtl.registry import DATASETS
from mmrepmtl.structures.kinds import KINDS, KindTable


class Row(NamedTuple):
    """One row of a table: {column: text}, and where it stands."""

    cells: dict[str, str]
    where: str

    def at(self, column: str) -> str:
        """Names the place of a cell, for error messages."""
        return f'{self.where}, column {column!r}'


@DATASETS.register_module()
class MultiTaskCSVDataset(MultiTaskDataset):
    """Own data listed in a CSV file: a column for the images, the others are targets as the config declares them.

    An example::

        dataset=dict(
            type='MultiTaskCSVDataset',
            data_root='data/cars',
            ann_file='{split}.csv',                     # image,depth,brand,x,y
            split='train',
            labels=dict(
                depth=dict(kind='depth', scale=1000),
                brand=dict(kind='classification', classes=['audi', 'fiat', 'saab']),
                pose=dict(kind='regression', columns=['x', 'y'])),
            pipeline=[dict(type='PackMultiTaskInputs')])

    The first row names the columns. A target is in the column of its name unless ``column`` says otherwise. Cells are
    paths for dense kinds (what the files hold and which options there are: see ``MultiTaskFolderDataset``), names or
    ids of classes for ``classification``, numbers for ``regression``, which may take several ``columns`` to a vector.
    An empty cell means unlabelled; in a vector, this number only.

    Without ``classes`` a classification has the names found in all rows of all splits, sorted (or 0 to K - 1 if all are
    whole numbers). Relative paths start at ``data_root``, without one at the folder of the CSV file.

    Args:
        labels: {target: its declaration}.
        ann_file: The CSV file; relative to ``data_root``. It may hold '{split}'.
        data_root: See above.
        image: Column of the images. Defaults to 'image'.
        split: Replaces '{split}'; with ``split_column`` the rows of this split are taken. Defaults to 'train'.
        split_column: Column that says which split a row belongs to; None takes all rows.
        delimiter: Between cells. Defaults to ','.
        test_mode: None means all splits but 'train'.
        **kwargs: Those of ``MultiTaskDataset``: ``targets`` (the names to load), ``pipeline``, ``indices``, ``seed``,
            ``check``, ``cache_dir``.

    Raises:
        ValueError: On a wrong declaration, a column that is not there, or a cell that holds something else than it
            should, naming file, line and column.
        FileNotFoundError: If the table or a file that it names is missing.
    """

    def __init__(
        self,
        labels: Mapping[str, Mapping],
        ann_file: str,
        data_root: str | None = None,
        image: str = 'image',
        split: str = 'train',
        split_column: str | None = None,
        delimiter: str = ',',
        test_mode: bool | None = None,
        metainfo: Mapping | None = None,
        **kwargs: Any,
    ) -> None:
        check_labels('MultiTaskCSVDataset', labels, _places())
        self.image, self.split, self.split_column, self.delimiter = image, split, split_column, delimiter
        self.pattern = str(Path(data_root or '').expanduser() / Path(ann_file).expanduser())
        self.root = str(Path(data_root).expanduser() if data_root else Path(self._file()).parent)
        test_mode = split != 'train' if test_mode is None else test_mode
        self.labels = {name: self._complete(name, label, test_mode) for name, label in labels.items()}
        self._readers = {name: _make_reader(name, label) for name, label in self.labels.items()}
        super().__init__(
            data_root=self.root,
            test_mode=test_mode,
            metainfo=dict(targets={name: declare(label) for name, label in self.labels.items()}) | dict(metainfo or {}),
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        """One dict per row: ``paths`` of the image and the dense targets, ``values`` of the others."""
        rows = read_table(self._file(), self._columns(self.targets), self.delimiter)
        if self.split_column is not None:
            splits = sorted({row.cells[self.split_column] for row in rows})
            rows = [row for row in rows if row.cells[self.split_column] == self.split]
            if not rows:
                raise ValueError(
                    f'{self._file()}: no row has {self.split!r} in the column {self.split_column!r}, only '
                    f'{", ".join(map(repr, splits[:8]))}'
                )
        if not rows:
            raise ValueError(f'{self._file()}: has no rows below the names of the columns')
        return [self._parse(row) for row in rows]

    def load_sample(self, data_info: dict) -> dict:
        """See :meth:`MultiTaskDataset.load_sample`."""
        paths = dict(data_info['paths'])
        image = paths.pop('image')
        gt: dict[str, Any] = {name: self._readers[name](path) for name, path in paths.items()}
        for name, value in data_info['values'].items():
            facts = KINDS[self.labels[name]['kind']]
            gt[name] = np.array(value, facts.dtype) if facts.array else value
        return dict(img=read_image(image), img_path=image, gt=gt, gt_paths=paths)

    def _parse(self, row: Row) -> dict:
        if not row.cells[self.image]:
            raise ValueError(f'{row.at(self.image)}: is empty, expected the path of an image')
        paths, values = dict(image=self._find(row, self.image)), {}
        for name in self.targets:
            label = self.labels[name]
            texts = [row.cells[column] for column in label['columns']]
            if not any(texts):
                continue
            if KINDS[label['kind']].dense:
                paths[name] = self._find(row, label['columns'][0])
            else:
                values[name] = self._readers[name](texts, [row.at(column) for column in label['columns']])
        return dict(paths=paths, values=values)

    def _find(self, row: Row, column: str) -> str:
        path = os.path.join(self.root, os.path.expanduser(row.cells[column]))
        if not os.path.isfile(path):
            raise FileNotFoundError(f'{row.at(column)}: there is no file {path}')
        return path

    def _complete(self, name: str, label: Mapping, test_mode: bool) -> dict:
        """The declaration with its columns, the names of its numbers and its classes."""
        label = dict(label)
        columns = label.pop('columns', None) or [label.pop('column', None) or name]
        label['columns'] = [columns] if isinstance(columns, str) else list(columns)
        kind = KINDS[label['kind']]
        if kind.names == 'names':
            label['names'] = list(label.get('names') or label['columns'])
            if len(label['names']) != len(label['columns']):
                raise ValueError(
                    f'MultiTaskCSVDataset: label {name!r} has {len(label["names"])} names for '
                    f'{len(label["columns"])} columns'
                )
        if kind.of_images and label.get('classes') is None:
            label['classes'] = self._classes_in_data(name, label['columns'][0], test_mode)
        elif 'classes' in label:
            label['classes'] = listed_classes('MultiTaskCSVDataset', name, label['classes'], self.root)
        return label

    def _classes_in_data(self, name: str, column: str, test_mode: bool) -> tuple[str, ...]:
        if test_mode and '{split}' not in self.pattern and self.split_column is None:
            refuse_own_classes('MultiTaskCSVDataset', name, "Or set split_column, or write ann_file='{split}.csv'")
        files = sorted(glob.glob(glob.escape(self.pattern).replace('{split}', '*')))
        rows = [row for file in files for row in read_table(file, [column], self.delimiter)]
        return names_in_data((row.cells[column] for row in rows), f'{self.pattern}, column {column!r}')

    def _columns(self, targets: Mapping[str, Any]) -> list[str]:
        own = [column for name in targets for column in self.labels[name]['columns']]
        return [self.image, *own, *([self.split_column] if self.split_column is not None else [])]

    def _file(self) -> str:
        return self.pattern.replace('{split}', self.split)


def read_table(path: str, columns: Sequence[str], delimiter: str = ',') -> list[Row]:
    """The rows of a CSV file (UTF-8); empty lines are left out.

    Args:
        path: The file.
        columns: Names that the first row must have; of the others nothing is kept.
        delimiter: Between cells.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a column is missing or there twice, a row has more or fewer cells, or it is no text.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'MultiTaskCSVDataset: there is no file {path}')
    rows = []
    try:
        # Spreadsheets begin a UTF-8 file with a byte order mark.
        with open(path, encoding='utf-8-sig', newline='') as file:
            lines = csv.reader(file, delimiter=delimiter, strict=True)
            header = [name.strip() for name in next(lines, [])]
            _check_header(path, header, columns)
            position = {column: header.index(column) for column in columns}
            for cells in lines:
                if not any(cell.strip() for cell in cells):
                    continue
                where = f'{path}, line {lines.line_num}'
                if len(cells) != len(header):
                    raise ValueError(f'{where}: found {len(cells)} cells, expected {len(header)}')
                rows.append(Row({column: cells[place].strip() for column, place in position.items()}, where))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f'{path}: cannot be read as a CSV file in UTF-8 ({error})') from error
    return rows


def _check_header(path: str, header: list[str], columns: Sequence[str]) -> None:
    for column in columns:
        if column not in header:
            raise ValueError(f'{path}, line 1: there is no column {column!r}, only {", ".join(map(repr, header))}')
        if header.count(column) > 1:
            raise ValueError(f'{path}, line 1: the column {column!r} is there {header.count(column)} times')


def _places() -> dict[str, tuple[str]]:
    """{kind: what says where its values are}; several columns make a vector of named numbers."""
    return {name: ('columns',) if kind.names == 'names' else ('column',) for name, kind in KINDS.items()}


class ParseClass:
    """From a cell to the id of the class that it names."""

    def __init__(self, label: Mapping) -> None:
        self.classes = ClassNames(label['classes'])

    def __call__(self, texts: Sequence[str], places: Sequence[str]) -> int:
        return self.classes.parse(texts[0], places[0])


def parse_numbers(texts: Sequence[str], places: Sequence[str]) -> list[float]:
    """From the cells of a vector to its numbers."""
    return [parse_number(text, where) for text, where in zip(texts, places, strict=True)]


#: Functions of a declaration. Each returns a function of (texts of the cells, their places) to a plain value.
CELL_READERS: KindTable[Callable[[Mapping], Callable[[Sequence[str], Sequence[str]], Any]]] = KindTable(
    'mmrepmtl.datasets.csv.CELL_READERS',
    dict(classification=ParseClass, regression=lambda label: parse_numbers),
    dense=False,
)


def _make_reader(name: str, label: Mapping) -> Callable[..., Any]:
    if KINDS[label['kind']].dense:
        return file_reader('MultiTaskCSVDataset', name, label)
    return CELL_READERS[label['kind']](label)
