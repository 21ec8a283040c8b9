"""The library's log as ComfyUI shows it: there, a message is all that is seen, so each begins with the pack's name."""

from __future__ import annotations

import logging

NAME = "qarvd"


class Named(logging.Filter):
    """Puts the pack's name before each message, once if several copies of this pack are loaded."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, NAME):
            record.msg = f"{NAME}: {record.msg}"
            setattr(record, NAME, True)
        return True


def name_messages() -> None:
    """Have the library's messages begin with the pack's name. They go on to the root logger, which is ComfyUI's log."""
    logging.getLogger(NAME).addFilter(Named())
