#!/usr/bin/env python
"""The command ``mmrepmtl browse``, in a checkout."""

from mmrepmtl.cli.browse import main

if __name__ == '__main__':
    main()
