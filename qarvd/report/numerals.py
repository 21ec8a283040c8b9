"""Numbers as people like to read them: round ticks for an axis, and short text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

TINY, HUGE = 1e-300, 1e300
"""Beyond these, differences and ratios leave the range of a float; an axis can't show such numbers."""


def drawable(value: float, log: bool = False) -> bool:
    """Whether an axis, linear or logarithmic, can show `value`."""
    return abs(value) <= HUGE and (value >= TINY or not log)  # False for NaN


def number_text(value: float) -> str:
    """Four significant digits, thousands set apart, and no exponent where it can be helped."""
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 1e-4 <= abs(value) < 1e3:
        return f"{value:.4g}"
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e12 else f"{value:.3e}"


def linear_ticks(low: float, high: float, about: int = 5, whole: bool = False) -> list[float]:
    """Around `about` round numbers, evenly spaced, the first at or below `low` and the last at or above `high`."""
    if high - low <= max(1e-9 * max(abs(low), abs(high)), TINY):
        margin = abs(low) / 10 if abs(low) > TINY else 0.5
        low, high = low - margin, high + margin
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    if whole:
        step = max(1.0, float(math.ceil(step)))
    slack = 1e-9 * min(1.0, max(abs(low), abs(high)) / step)  # of rounding; a step may be far wider than the range
    first, last = math.floor(low / step + slack), math.ceil(high / step - slack)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float, about: int = 7) -> list[float]:
    """Powers of ten around [low, high], with 2 and 5 between them where there is room; both ends above 0."""
    bottom, top = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = max(1, top - bottom)
    if decades <= 2:
        ticks = [m * 10.0**e for e in range(bottom, bottom + decades) for m in (1, 2, 5)] + [10.0 ** (bottom + decades)]
        below = [t for t in ticks if t <= low * (1 + 1e-9)][-1]
        above = next(t for t in ticks if t >= high * (1 - 1e-9) and t > below)
        return [t for t in ticks if below <= t <= above]
    stride = math.ceil(decades / about)
    return [10.0 ** (bottom + i) for i in range(0, decades + stride, stride)]


def log_texts(ticks: Sequence[float]) -> list[str]:
    """The ticks of a logarithmic axis as text; powers of ten beyond a few digits as such."""
    if ticks[0] >= 1e-3 and ticks[-1] <= 1e4:
        return [f"{tick:,g}" for tick in ticks]
    parts = [f"{tick:.0e}".split("e") for tick in ticks]
    return [("" if digit == "1" else f"{digit}\u00b7") + power_text(int(e)) for digit, e in parts]


def power_text(exponent: int) -> str:
    """Ten to the `exponent`, its digits raised."""
    small = str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")
    return "10" + str(exponent).translate(small)


def tick_texts(ticks: Sequence[float]) -> list[str]:
    """The ticks of one axis as text, all with the same number of decimals where that is short enough."""
    spacing = min((abs(b - a) for a, b in pairwise(ticks)), default=1.0)
    if max(map(abs, ticks)) >= 1e7 or spacing < 1e-4:
        return [f"{tick:.6g}" for tick in ticks]
    decimals = next((d for d in range(5) if abs(round(spacing, d) - spacing) < spacing / 1e3), 5)
    return [f"{tick:,.{decimals}f}" for tick in ticks]
