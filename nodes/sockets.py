"""The kinds of sockets that this pack adds, and what runs through them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from comfy_api.latest import io
from torch import Tensor

from ..qarvd.calibrate.calibration import Calibration
from ..qarvd.stream.schedule import Schedule

Recipe = io.Custom("QARVD_RECIPE")
"""`qarvd.recipe.Recipe`."""
Prompts = io.Custom("QARVD_PROMPTS")
"""`PromptList`."""
Statistics = io.Custom("QARVD_STATISTICS")
"""`StoredCalibration`."""
ScheduleSocket = io.Custom("QARVD_SCHEDULE")
"""`qarvd.stream.schedule.Schedule`."""
Changes = io.Custom("QARVD_CHANGES")
"""CONDITIONINGs by the index, from 0, of the generated chunk at which each takes over."""


@dataclass(frozen=True)
class PromptList:
    """Encoded prompts and the file they lie in."""

    embeddings: Tensor
    """[prompts, tokens, text_dim]."""
    path: Path


@dataclass(frozen=True)
class StoredCalibration:
    """Statistics and the file they lie in."""

    calibration: Calibration
    path: Path


__all__ = [
    "Changes",
    "PromptList",
    "Prompts",
    "Recipe",
    "Schedule",
    "ScheduleSocket",
    "Statistics",
    "StoredCalibration",
]
