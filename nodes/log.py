"""Telling the user something once, in ComfyUI's log."""

from __future__ import annotations

import logging

_SAID: set[str] = set()


def warn_once(text: str) -> None:
    """Log `text`, the first time only."""
    if text not in _SAID:
        _SAID.add(text)
        logging.warning("qarvd: %s", text)
