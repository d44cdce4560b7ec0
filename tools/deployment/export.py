#!/usr/bin/env python
"""The command ``mmrepmtl export``, in a checkout."""

import sys

from mmrepmtl.cli.export import main

if __name__ == '__main__':
    sys.exit(main())
