#!/usr/bin/env python
"""The command ``mmrepmtl infer``, in a checkout."""

import sys

from mmrepmtl.cli.infer import main

if __name__ == '__main__':
    sys.exit(main())
