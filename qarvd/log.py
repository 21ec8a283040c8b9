"""The one voice in which the library says something aside: the logger "qarvd"."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

LOGGER = logging.getLogger("qarvd")
_said: set[str] = set()


def warn_once(text: str) -> None:
    """Warn of `text`, the first time only."""
    if text not in _said:
        _said.add(text)
        LOGGER.warning(text)


@contextmanager
def on_stderr(level: int = logging.WARNING) -> Iterator[None]:
    """Show what is logged from `level` on on stderr, for a program that has set up no logging of its own."""
    handler, before = logging.StreamHandler(), LOGGER.level
    handler.setFormatter(logging.Formatter("qarvd: %(message)s"))
    LOGGER.addHandler(handler)
    LOGGER.setLevel(level)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(before)
