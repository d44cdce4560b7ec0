"""A Runner whose log is in its file, so that the screen is free for what a person reads."""

import logging
import re
from typing import Any

from mmengine.logging import MMLogger
from mmengine.runner import Runner

#: Warnings of mmengine about itself, at each start.
_NOISE = re.compile(r'will be deprecated|is deprecated')


class ScreenFilter(logging.Filter):
    """Lets warnings and errors pass to the screen, but not the warnings of mmengine about its own old names."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is shown."""
        if record.levelno >= logging.ERROR:
            return True
        return record.levelno >= logging.WARNING and _NOISE.search(record.getMessage()) is None


class QuietRunner(Runner):
    """mmengine's Runner with its log in the file of the work directory, and on the screen warnings and errors only."""

    def build_logger(self, log_level: int | str = 'INFO', log_file: str | None = None, **kwargs: Any) -> MMLogger:
        """Builds mmengine's logger and filters its way to the screen."""
        logger = super().build_logger(log_level, log_file, **kwargs)
        for handler in logger.handlers:
            # The handler of the file derives from that of the screen.
            if type(handler) is logging.StreamHandler:
                handler.addFilter(ScreenFilter())
        return logger
