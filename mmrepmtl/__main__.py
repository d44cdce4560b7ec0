"""``python -m mmrepmtl`` is the command ``mmrepmtl``."""

import sys

from mmrepmtl.cli import main

if __name__ == '__main__':
    sys.exit(main())
