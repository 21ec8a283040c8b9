"""Choose how to store every group of linears so that the model meets a size at the least error.

A multiple-choice knapsack, solved exactly unless there are very many choices: groups join one by one, and of all
choices for those so far the ones remain that no other beats in both bytes and error.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Generic, NamedTuple, TypeVar

from ..errors import SettingError

Key = TypeVar("Key", bound=Hashable)
MOST = 2000
"""Choices for the first groups that are followed; of more, those of about one size stand for each other."""
UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9}


@dataclass(frozen=True)
class Target:
    """A size to meet: of the file, or per weight of all linears that take part."""

    bytes: float | None = None
    bits: float | None = None


@dataclass(frozen=True)
class Option:
    """What a group takes and costs, stored in one way."""

    nbytes: int
    error: float


@dataclass(frozen=True)
class Allocation(Generic[Key]):
    """The bits of every group, and what they take and cost together."""

    bits: Mapping[Key, str]
    nbytes: int
    error: float


def parse_target(text: str) -> Target:
    """'900MB', '1.2 GB', '4.5 bits'. Raises SettingError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(KB|MB|GB|bits?)\s*", text, re.IGNORECASE)
    if not match or not float(match[1]):
        raise SettingError(
            f"The target {text!r} is not understood; write a size such as 900MB or 1.2GB, or '4.5 bits'."
        )
    number, unit = float(match[1]), match[2].upper()
    return Target(bytes=number * UNITS[unit]) if unit in UNITS else Target(bits=number)


def allocate(options: Mapping[Key, Mapping[str, Option]], capacity: float) -> Allocation[Key]:
    """Pick an option, by bits, for every group, of at most `capacity` bytes together and of the least error.

    Raises SettingError where not even the smallest options fit, and, naming the group, where an error is not finite.
    """
    for key, choices in options.items():
        if not all(isfinite(option.error) for option in choices.values()):
            raise SettingError(f"What {key} does to the prediction is not known: an error of it is NaN or infinite.")
    later = sum(min(option.nbytes for option in choices.values()) for choices in options.values())
    if later > capacity:
        raise SettingError(f"The smallest options take {later:.0f} bytes, and there are {capacity:.0f}.")
    front: list[_Start] = [_Start(0, 0.0)]
    for choices in options.values():
        later -= min(option.nbytes for option in choices.values())
        longer = [
            _Start(start.nbytes + option.nbytes, start.error + option.error, bits, start)
            for start in front
            for bits, option in choices.items()
            if start.nbytes + option.nbytes + later <= capacity
        ]
        longer.sort(key=lambda start: (start.nbytes, start.error))
        front = []
        for start in longer:
            if not front or start.error < front[-1].error:
                front.append(start)
        if len(front) > MOST:  # of those of about one size the best, and the smallest of all
            front = list({0: front[0], **{1 + int(s.nbytes * MOST / capacity): s for s in front}}.values())
    best = start = front[-1]
    bits = []
    while start.before is not None:
        bits.append(start.bits)
        start = start.before
    return Allocation(dict(zip(options, reversed(bits), strict=True)), best.nbytes, best.error)


class _Start(NamedTuple):
    """A choice for the first groups; of those that no other one beats in both bytes and error, all are kept."""

    nbytes: int
    error: float
    bits: str = ""
    """Of the last of these groups."""
    before: _Start | None = None
    """The choice for the groups before it."""
