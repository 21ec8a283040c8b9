"""The bar on a node, and the button that stops it."""

from __future__ import annotations

from typing import Any

import comfy.model_management as management
import comfy.utils

PREVIEW = 512
"""Longest side of a preview in pixels."""


class Progress:
    """ComfyUI's progress bar of the node that is running."""

    def __init__(self, total: int) -> None:
        self.bar, self.done = comfy.utils.ProgressBar(max(1, total)), 0

    def advance(self) -> None:
        """One more is done. Raises ComfyUI's own interruption where the user pressed cancel."""
        check_cancelled()
        self.done += 1
        self.bar.update_absolute(self.done)

    def picture(self, image: Any) -> None:
        """Show a PIL image as ComfyUI's own preview of the node."""
        self.bar.update_absolute(self.done, preview=("JPEG", image, PREVIEW))

    def at(self, done: int, total: int) -> None:
        """So much is done of what is now known to be in all."""
        check_cancelled()
        self.done = done
        self.bar.update_absolute(done, max(1, total))

    def check(self) -> None:
        """Raise ComfyUI's own interruption where the user pressed cancel."""
        check_cancelled()


def check_cancelled() -> None:
    """Raise ComfyUI's own interruption where the user pressed cancel."""
    management.throw_exception_if_processing_interrupted()
