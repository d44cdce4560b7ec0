"""Configs for comparisons in tests."""

from pathlib import Path

from tests.cli.harness import TINY


def variant(folder: Path, text: str) -> Path:
    """A config in ``folder`` that inherits the tiny one."""
    file = folder / 'variant.py'
    file.write_text(f'_base_ = {str(TINY)!r}\n{text}\n')
    return file
