"""The examples of CONTRIBUTING.md, for the tests that run them."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONTRIBUTING = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')


def examples() -> dict[str, str]:
    """{file: its code}, as the page names each file right before it."""
    return dict(re.findall(r'This one is\s+`([\w.-]+\.py)`:\n\n```python\n(.*?)```', CONTRIBUTING, re.S))


def number_of_blocks() -> int:
    return CONTRIBUTING.count('```python\n')
