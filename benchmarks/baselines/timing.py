"""What a method costs by itself: its own time and that of the calibration it asks for, whoever had it made."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic, TypeVar

Made = TypeVar("Made")
Built = TypeVar("Built")


class Calibrations(Generic[Made]):
    """Calibrations of one case by number of prompts, each made when first asked for, and the seconds that took."""

    def __init__(self, make: Callable[[int], Made]) -> None:
        self.make, self.asked = make, set[int]()
        self.made: dict[int, tuple[Made, float]] = {}

    def __call__(self, prompts: int) -> Made:
        self.asked.add(prompts)
        if prompts not in self.made:
            began = time.perf_counter()
            found = self.make(prompts)
            self.made[prompts] = found, time.perf_counter() - began
        return self.made[prompts][0]


def timed(build: Callable[[], Built], calibrations: Calibrations[Made]) -> tuple[Built, float]:
    """What `build` gives, and its seconds as if it had been the first to ask for its calibrations."""
    calibrations.asked.clear()
    there = set(calibrations.made)
    began = time.perf_counter()
    built = build()
    seconds = time.perf_counter() - began
    return built, seconds + sum(calibrations.made[prompts][1] for prompts in calibrations.asked & there)
