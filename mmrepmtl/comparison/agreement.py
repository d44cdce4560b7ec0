"""Keeps one table to one config and one set of options: the rows, entries and choices that a folder has already."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from mmrepmtl.comparison import choice
from mmrepmtl.comparison.entries import Entry, parse_entries
from mmrepmtl.comparison.plan import PLAN, Contestant, Options, load_contestant
from mmrepmtl.comparison.results_file import CONSTANT, Row
from mmrepmtl.comparison.runs import RUNS
from mmrepmtl.comparison.settings import differences


class Agreement:
    """Says whether what a folder has was made with the config and the options of this call.

    Labels that this call does not name are resolved again with its options, since their rows stand in the same table.

    Args:
        config: The config of the comparison, as it was given.
        options: What holds for all runs.
        contestants: Those of this call.
    """

    def __init__(self, config: str, options: Options, contestants: Iterable[Contestant]) -> None:
        self._config, self._options = config, options
        self._known = {one.entry.label: one for one in contestants}
        self._parts: dict[str, str | None] = {}

    def check_plan(self, plan: Mapping[str, Any], work_dir: Path, rows: Sequence[Row]) -> None:
        """Refuses a folder in which other methods were run with another config or other options.

        Args:
            plan: The content of ``comparison.json``. An entry without a row and without a folder binds nothing.
            work_dir: The folder of the comparison.
            rows: Of its results.

        Raises:
            ValueError: Naming each such label, and the first keys that differ.
        """
        there = {row.label for row in rows}
        changed = {}
        for label, stored in (plan.get('entries') or {}).items():
            if label in self._known or not (label in there or (work_dir / RUNS / label).is_dir()):
                continue
            now = self._resolve(label, _entry(stored, plan.get('config'), self._config), work_dir / PLAN)
            if now.config_hash != stored.get('config_hash'):
                changed[label] = differences(stored.get('settings') or {}, now.settings) or 'the settings'
        if changed:
            told = '; '.join(f'{label}: {what}' for label, what in changed.items())
            raise ValueError(
                f'{work_dir} has methods with another config or other options: {told}. One table is of one config: '
                'take the change back, or use another --work-dir'
            )

    def check_rows(self, rows: Sequence[Row], source: str | os.PathLike) -> None:
        """Refuses rows of another config, of whichever seed and split.

        Args:
            rows: Those that would stand in the table.
            source: Their file, for the error.

        Raises:
            ValueError: A row has another config, or its label cannot be resolved.
        """
        for row in {(row.label, row.split, row.config_hash): row for row in rows}.values():
            if row.label == CONSTANT:
                continue
            own = self._known.get(row.label) or self._resolve(row.label, None, source)
            part = row.split == 'val' and row.config_hash != own.config_hash
            if row.config_hash != (self._part_hash(own) if part else own.config_hash):
                raise ValueError(
                    f'{source} has {row.label}, seed {row.seed} with the config {row.config_hash}, but the config is '
                    f'{own.config_hash} now; take the config and the options that it was run with, use another '
                    '--work-dir, or leave these rows out'
                )

    def _part_hash(self, contestant: Contestant) -> str | None:
        """The hash on parts of the training images; None where there are no parts, or validation data of its own."""
        label = contestant.entry.label
        if label not in self._parts:
            try:
                parts = choice.needs_parts(self._config, self._options)
            except ValueError:  # there are no parts that the row could be of
                parts = False
            self._parts[label] = choice.on_parts(contestant, self._options).config_hash if parts else None
        return self._parts[label]

    def _resolve(self, label: str, entry: Entry | None, source: str | os.PathLike) -> Contestant:
        try:
            if entry is None:
                (entry,) = parse_entries([label], self._config)
            self._known[label] = load_contestant(entry, self._options)
        except (ValueError, OSError) as error:
            raise ValueError(
                f'{source} has {label}, but with which config cannot be said now: {error}. Name its entry in '
                '--methods, or use another --work-dir'
            ) from error
        return self._known[label]


def _entry(stored: Mapping[str, Any], was: str | None, config: str) -> Entry:
    """The entry that ``comparison.json`` has; the config of the comparison may have another path now."""
    entry = Entry(**{one.name: stored[one.name] for one in fields(Entry) if one.name in stored})
    return replace(entry, config=config) if entry.config == was else entry


def check_choices(
    choices: Mapping[str, Mapping[str, Any]], sweeps: Mapping[str, Sequence[Contestant]], source: str | os.PathLike
) -> None:
    """Refuses a choice among values that had another config.

    Args:
        choices: {entry as typed: its choice}.
        sweeps: {entry as typed: its values now}.
        source: The file of the choices, for the error.

    Raises:
        ValueError: Naming the entry.
    """
    for group, values in sweeps.items():
        chosen = choices.get(group)
        if chosen is None:
            continue
        for value in values:
            before = chosen.get('hashes', {}).get(value.entry.label)
            if before != value.config_hash:
                raise ValueError(
                    f'{source}: the value of {group} was chosen with the config {before} of {value.entry.label}, but '
                    f'it is {value.config_hash} now; take the change back, or use another --work-dir'
                )
