#!/usr/bin/env python
"""The command ``mmrepmtl analyse``, in a checkout."""

import sys

from mmrepmtl.cli.analyse import main

if __name__ == '__main__':
    sys.exit(main())
