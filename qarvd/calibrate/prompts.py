"""The calibration prompts that come with qarvd."""

from __future__ import annotations

from pathlib import Path

FILE = Path(__file__).with_name("prompts.txt")
"""64 prompts, one a line: many subjects, motions, cameras and lights, short and long in every four."""


def shipped_prompts() -> list[str]:
    """All of them, in order; any first few are as varied as the rest."""
    return FILE.read_text(encoding="utf-8").splitlines()
