"""How the command line tools end."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmrepmtl.utils.checkpoint import CheckpointError


def in_one_line(main: Callable[[], Any]) -> Callable[[], Any]:
    """Has a checkpoint that is refused end a tool with that line and status 1, without a traceback."""

    @functools.wraps(main)
    def run() -> Any:
        try:
            return main()
        except CheckpointError as error:
            sys.exit(f'{Path(sys.argv[0]).stem}: {error}')

    return run
