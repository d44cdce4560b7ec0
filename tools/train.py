#!/usr/bin/env python
"""The command ``mmrepmtl train``, in a checkout."""

from mmrepmtl.cli.train import main

if __name__ == '__main__':
    main()
