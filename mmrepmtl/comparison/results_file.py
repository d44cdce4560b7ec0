"""``results.csv``: the numbers of a comparison, one row per run and metric."""

import csv
import io
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, fields

from mmrepmtl.utils.files import whole_file

RESULTS = 'results.csv'
"""Name of the file in the folder of a comparison."""
CONSTANT = 'constant'
"""Label of the best constant predictions of the training set, which have no seed."""
STL = 'stl'
"""Label of the single-task baseline."""
AND = ' and '
"""Between the commits or versions of a run that has gone on with others than it began with."""


@dataclass(frozen=True)
class Row:
    """One metric of one run.

    Attributes:
        label: The entry of ``--methods``, safe for a file name; 'stl' and 'constant' are the baselines.
        method: The overlay, without the values of a sweep.
        seed: Seed of the run; None for the constants.
        split: 'test', or 'val' for the numbers that a value of a sweep was chosen by.
        metric: 'task/name', as in ``test_metrics.json``.
        value: In the unit of the metric; NaN where the run has none.
        higher_is_better: Whether a larger value is the better one.
        task: The part of ``metric`` before the last slash.
        selection: Which checkpoint was tested.
        config: The config of the comparison, as it was given.
        config_hash: Of the resolved config, without what does not change the numbers.
        commit: Git commit of the checkout, 'unknown' outside; 'a and b' if the run has gone on with another.
        versions: JSON text: {package: version}, the device and its threads; likewise joined.
        step_seconds: Median time of an iteration, s; None if the log does not say it.
        peak_memory_mib: Of the GPU where there is one, else of the process, MiB.
        train_seconds: Time of all trainings of this run, s, also those before a resume.
        finished: ISO time at which the test was done.
        sweep: JSON text: {key: value} of the entry, '{}' without.
    """

    label: str
    method: str
    seed: int | None
    split: str
    metric: str
    value: float
    higher_is_better: bool
    task: str
    selection: str
    config: str
    config_hash: str
    commit: str
    versions: str
    step_seconds: float | None
    peak_memory_mib: float | None
    train_seconds: float | None
    finished: str
    sweep: str = '{}'


COLUMNS = tuple(field.name for field in fields(Row))


def read_results(path: str | os.PathLike) -> list[Row]:
    """Reads a results file.

    Args:
        path: The file.

    Returns:
        Its rows, in the order of the file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no results file, or a value cannot be read; names file, line and column.
    """
    with open(path, encoding='utf-8', newline='') as file:
        reader = csv.DictReader(file, strict=True)
        try:
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise ValueError(f'{path}: no results file of mmrepmtl compare, it has no column {", ".join(missing)}')
            return [_read_row(entry, f'{path}: line {reader.line_num}') for entry in reader]
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f'{path}: line {reader.line_num}: {error}') from error


def write_results(path: str | os.PathLike, rows: Iterable[Row]) -> None:
    """Writes a results file: a reader finds the old file or the whole new one, never a part.

    Args:
        path: The file; its folder is made if need be.
        rows: Its rows.
    """
    text = io.StringIO(newline='')
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([_as_text(getattr(row, name)) for name in COLUMNS])
    with whole_file(path) as file:
        file.write(text.getvalue().encode())


def _as_text(value: str | float | bool | None) -> str:
    if value is None:
        return ''
    return str(int(value)) if isinstance(value, bool) else str(value)


def _read_row(entry: dict[str, str | None], where: str) -> Row:
    if None in entry or None in entry.values():
        raise ValueError(f'{where}: there are not {len(COLUMNS)} columns')
    values: dict = {name: entry[name] for name in COLUMNS}
    for name in ('value', 'step_seconds', 'peak_memory_mib', 'train_seconds'):
        values[name] = _number(values[name], name, where)
    seed = values['seed']
    if seed and not seed.removeprefix('-').isdecimal():
        raise ValueError(f'{where}: seed is {seed!r}, expected a whole number')
    values['seed'] = int(seed) if seed else None
    if values['higher_is_better'] not in ('0', '1'):
        raise ValueError(f'{where}: higher_is_better is {values["higher_is_better"]!r}, expected 0 or 1')
    values['higher_is_better'] = values['higher_is_better'] == '1'
    if values['value'] is None:
        values['value'] = math.nan
    for name in ('versions', 'sweep'):
        try:
            known = isinstance(json.loads(values[name]), dict)
        except ValueError:
            known = False
        if not known:
            raise ValueError(f'{where}: {name} is {values[name]!r}, expected JSON of the form {{"key": value}}')
    return Row(**values)


def _number(text: str, name: str, where: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        raise ValueError(f'{where}: {name} is {text!r}, expected a number') from None
