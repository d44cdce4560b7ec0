#!/usr/bin/env python
"""The command ``mmrepmtl test``, in a checkout."""

from mmrepmtl.cli.test import main

if __name__ == '__main__':
    main()
