"""What the library logs, shown on stderr."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from ..log import LOGGER


class _Lines(logging.Handler):
    """Writes messages to stderr, each on a line of its own even while a progress bar is there."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


@contextmanager
def on_stderr(level: int = logging.WARNING) -> Iterator[None]:
    """Show messages of `level` or above on stderr, in a program that has set up no logging of its own."""
    handler, before = _Lines(), LOGGER.level
    handler.setFormatter(logging.Formatter("qarvd: %(message)s"))
    LOGGER.addHandler(handler)
    LOGGER.setLevel(level)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(before)
