"""Kinds that a test registers, taken back after it."""

from collections.abc import Iterator
from contextlib import contextmanager

from mmrepmtl.structures.kinds import KINDS, TABLES


@contextmanager
def forget_new_kinds() -> Iterator[None]:
    """Takes back the kinds that are registered inside, their entries, and tables that are not the package's."""
    kinds = dict(KINDS)
    try:
        yield
    finally:
        KINDS.clear()
        KINDS.update(kinds)
        TABLES[:] = [table for table in TABLES if table.place.startswith('mmrepmtl.')]
        for table in TABLES:
            for kind in [kind for kind in table if kind not in kinds]:
                del table[kind]
