#!/usr/bin/env python
"""The command ``mmrepmtl quickstart``, in a checkout."""

from mmrepmtl.cli.quickstart import main

if __name__ == '__main__':
    main()
