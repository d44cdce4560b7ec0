#!/usr/bin/env python
"""The command ``mmrepmtl saliency``, in a checkout."""

from mmrepmtl.cli.saliency import main

if __name__ == '__main__':
    main()
