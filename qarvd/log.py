"""The one voice in which the library says something aside: the logger "qarvd"."""

from __future__ import annotations

import logging

LOGGER = logging.getLogger("qarvd")
_said: set[str] = set()


def warn_once(text: str) -> None:
    """Warn of `text`, the first time only."""
    if text not in _said:
        _said.add(text)
        LOGGER.warning(text)
