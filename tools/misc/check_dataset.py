#!/usr/bin/env python
"""The command ``mmrepmtl check``, in a checkout."""

import sys

from mmrepmtl.cli.check import main

if __name__ == '__main__':
    sys.exit(main())
