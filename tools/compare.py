#!/usr/bin/env python
"""The command ``mmrepmtl compare``, in a checkout."""

import sys

from mmrepmtl.cli.compare import main

if __name__ == '__main__':
    sys.exit(main())
