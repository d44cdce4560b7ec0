"""How the command line tools end."""

import functools
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]


def in_one_line(main: Callable[..., Any]) -> Callable[..., Any]:
    """Has what this package refuses end a tool with that line and status 1, without a traceback.

    An error that comes out of another package keeps its traceback: it may be a defect of ours.
    """

    @functools.wraps(main)
    def run(*args: Any, **kwargs: Any) -> Any:
        """Runs the tool; what it refuses is its last line."""
        try:
            return main(*args, **kwargs)
        except (ValueError, OSError) as error:
            if not _is_ours(error):
                raise
            prog = kwargs.get('prog') or Path(sys.argv[0]).stem
            sys.exit(f'{prog}: {str(error) or type(error).__name__}')

    return run


def _is_ours(error: BaseException) -> bool:
    """Whether the error was raised by a line of this package."""
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    return PACKAGE in Path(raised_in).resolve().parents
