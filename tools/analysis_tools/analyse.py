#!/usr/bin/env python
"""The command ``mmrepmtl analyse``, in a checkout."""

from mmrepmtl.cli.analyse import main

if __name__ == '__main__':
    main()
