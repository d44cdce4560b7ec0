#!/usr/bin/env python
"""The command ``mmrepmtl demo``, in a checkout: without an argument it serves the model of `make quickstart`."""

from pathlib import Path

from mmrepmtl.cli import demo

QUICKSTART = Path(__file__).resolve().parents[1] / 'work_dirs' / 'quickstart'


def main() -> None:
    demo.main(quickstart=QUICKSTART)


if __name__ == '__main__':
    main()
