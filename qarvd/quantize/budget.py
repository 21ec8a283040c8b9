"""Choose a bit-width for every group of linears so that the model meets a size at the least error.

A multiple-choice knapsack. On the convex hull of each group's (bytes, error) options, upgrades are taken in order of
error saved per byte; that is the optimum of the relaxed problem but for the last upgrade, so that the relaxed optimum
bounds how far the choice can be from the best one.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Generic, TypeVar

from ..errors import SettingError

Key = TypeVar("Key", bound=Hashable)
UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9}


@dataclass(frozen=True)
class Target:
    """A size to meet: of the file, or per weight of all linears that take part."""

    bytes: float | None = None
    bits: float | None = None


@dataclass(frozen=True)
class Option:
    """What a group takes and costs at one bit-width."""

    nbytes: int
    error: float


@dataclass(frozen=True)
class Allocation(Generic[Key]):
    """The bits of every group; no choice of that size has an error below `bound`."""

    bits: Mapping[Key, int]
    nbytes: int
    error: float
    bound: float


def parse_target(text: str) -> Target:
    """'900MB', '1.2 GB', '4.5 bits'. Raises SettingError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(KB|MB|GB|bits?)\s*", text, re.IGNORECASE)
    if not match or not float(match[1]):
        raise SettingError(f"The target {text!r} is neither a size such as 900MB or 1.2GB nor such as '4.5 bits'.")
    number, unit = float(match[1]), match[2].upper()
    return Target(bytes=number * UNITS[unit]) if unit in UNITS else Target(bits=number)


def allocate(options: Mapping[Key, Mapping[int, Option]], capacity: float) -> Allocation[Key]:
    """Pick an option, by bits, for every group, of at most `capacity` bytes together and the least error found.

    Raises SettingError where not even the smallest options fit, and, naming the group, where an error is not finite.
    """
    for key, choices in options.items():
        if not all(isfinite(option.error) for option in choices.values()):
            raise SettingError(f"What {key} does to the prediction is not known: an error of it is NaN or infinite.")
    hulls = {key: _hull(choices) for key, choices in options.items()}
    bits = {key: hull[0] for key, hull in hulls.items()}
    room = capacity - sum(options[key][b].nbytes for key, b in bits.items())
    if room < 0:
        raise SettingError(f"The smallest options take {capacity - room:.0f} bytes, and there are {capacity:.0f}.")
    upgrades = [
        (_slope(options[key][a], options[key][b]), key, a, b)
        for key, hull in hulls.items()
        for a, b in itertools.pairwise(hull)
    ]
    upgrades.sort(key=lambda upgrade: -upgrade[0])  # stable, and a group's own upgrades save less and less
    bound, left = sum(options[key][b].error for key, b in bits.items()), room
    for slope, key, a, b in upgrades:
        cost = options[key][b].nbytes - options[key][a].nbytes
        bound -= slope * min(cost, left)
        left -= min(cost, left)
        if bits[key] == a and cost <= room:
            bits[key], room = b, room - cost
    error = sum(options[key][b].error for key, b in bits.items())
    nbytes = sum(options[key][b].nbytes for key, b in bits.items())
    return Allocation(bits, nbytes, error, max(0.0, min(bound, error)))


def _hull(choices: Mapping[int, Option]) -> list[int]:
    """Bits on the lower convex hull of (bytes, error), by ascending bytes; each saves less per byte than the last."""
    hull: list[int] = []
    for bits in sorted(choices, key=lambda b: (choices[b].nbytes, choices[b].error)):
        new = choices[bits]
        if hull and new.error >= choices[hull[-1]].error:
            continue
        while len(hull) > 1 and _slope(choices[hull[-2]], choices[hull[-1]]) <= _slope(choices[hull[-1]], new):
            hull.pop()
        hull.append(bits)
    return hull


def _slope(a: Option, b: Option) -> float:
    """Error saved per byte from a to b."""
    return (a.error - b.error) / (b.nbytes - a.nbytes)
