"""A heat map as inline SVG: one number for each layer type and depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .charts import FAINT, WIDTH, nothing
from .numerals import drawable, number_text
from .svg import CHARACTER, canvas, tag, text, title

HEIGHT = 28
"""Of a row of cells."""
LONGEST = 24
"""Characters of a row's name that are shown."""
NARROW = 10
"""More columns than this take the width of the page."""
WIDEST = 96
"""Of a cell."""
SMALL = 6.3
"""Mean width of a character of the 11 px text, in pixels."""
FAINTEST, SHADES = 0.12, 32
EDGE = "fill:none;stroke:currentColor;stroke-opacity:.3"
DASHES = f"{EDGE};stroke-dasharray:3 3"


@dataclass(frozen=True)
class Cell:
    """One number of a heat map; `hover` names it in full and is shown on hover."""

    row: str
    column: str
    value: float | None
    """None, or not finite: there is none, and the cell is dashed."""
    hover: str


def heat_map(
    cells: Sequence[Cell],
    x_label: str,
    unit: str,
    written: Callable[[float], str] = number_text,
    missing: str = "not measured",
    beside: Sequence[float] = (),
) -> str:
    """Rows and columns in the order in which they first come; the shade grows with the logarithm, and 0 is empty.

    Numbers stand in the cells where all of them fit; `missing` says what a dashed cell is. The shades span
    the values of maps `beside` this one, too, so that cells compare.
    """
    values = [cell.value for cell in cells if cell.value is not None and drawable(cell.value, log=True)]
    if not cells:
        return nothing(f"{unit} by {x_label}: none", unit)
    rows, columns = (list(dict.fromkeys(names)) for names in zip(*((c.row, c.column) for c in cells), strict=True))
    wide = len(columns) > NARROW
    width = 2 * WIDTH if wide else WIDTH
    left = 12 + CHARACTER * min(LONGEST, max(map(len, rows)))
    pitch = min((width - 4 - left) / len(columns), WIDEST)
    numbers = ["" if cell.value is None else written(cell.value) for cell in cells]
    roomy = SMALL * max(map(len, numbers)) <= pitch - 4
    shaded = [*values, *(value for value in beside if drawable(value, log=True))]
    low, high = (min(shaded), max(shaded)) if shaded else (1.0, 1.0)

    top = 56.0
    bottom = top + HEIGHT * len(rows)
    parts = [text(0, 14, unit, font_weight="600"), _key(cells, low, high, written, missing)]
    for index, row in enumerate(rows):
        shown = row if len(row) <= LONGEST else row[: LONGEST - 1] + "\N{HORIZONTAL ELLIPSIS}"
        parts.append(text(left - 9, top + HEIGHT * (index + 0.5) + 4, shown, "end"))
    stride = math.ceil((CHARACTER * max(map(len, columns)) + 4) / pitch)
    for index, column in enumerate(columns):
        if index % stride == 0:
            parts.append(text(left + pitch * (index + 0.5), bottom + 17, column, "middle", style=FAINT))
    parts.append(text(left + pitch * len(columns) / 2, bottom + 36, x_label, "middle"))
    for cell, number in zip(cells, numbers, strict=True):
        x, y = left + pitch * columns.index(cell.column), top + HEIGHT * rows.index(cell.row)
        marks = [title(cell.hover), _box(x + 1, y + 1, pitch - 2, HEIGHT - 2, _style(cell.value, low, high))]
        if roomy and number:
            marks.append(text(x + pitch / 2, y + HEIGHT / 2 + 4, number, "middle", style="font-size:11px"))
        parts.append(tag("g", *marks))
    most = next((f"the most: {cell.hover}" for cell in cells if values and cell.value == max(values)), "none above 0")
    name = f"{unit}, {len(rows)} rows by {len(columns)} columns; {most}"
    return canvas(width, bottom + 46, name, *parts, wide=wide)


def _key(cells: Sequence[Cell], low: float, high: float, written: Callable[[float], str], missing: str) -> str:
    """The shades with the numbers they stand for, in one line."""
    parts, x = [], 0.0
    present = [cell.value for cell in cells if cell.value is not None and drawable(cell.value)]
    if any(drawable(value, log=True) for value in present):
        ends = [written(low), written(high)] if low < high else ["", written(high)]
        shades = SHADES if low < high else 3
        parts.append(text(x, 40, ends[0], style=FAINT))
        x += CHARACTER * len(ends[0]) + (6 if ends[0] else 0)
        for index in range(shades):
            share = index / (SHADES - 1) if low < high else 1.0
            parts.append(_box(x + 4 * index, 30, 4.3, 12, _shade(share), radius=0))
        x += 4 * shades + 6
        parts.append(text(x, 40, ends[1], style=FAINT))
        x += CHARACTER * len(ends[1]) + 24
    zero = [("0", EDGE)] if not all(drawable(value, log=True) for value in present) else []
    none = [(missing, DASHES)] if len(present) < len(cells) else []
    for label, style in zero + none:
        parts += [_box(x, 30, 18, 12, style), text(x + 24, 40, label, style=FAINT)]
        x += 24 + CHARACTER * len(label) + 24
    return "".join(parts)


def _style(value: float | None, low: float, high: float) -> str:
    if value is None or not drawable(value):
        return DASHES
    if not drawable(value, log=True):
        return EDGE
    span = math.log(high) - math.log(low)
    return _shade((math.log(value) - math.log(low)) / span if span else 1.0)


def _shade(share: float) -> str:
    """From the faintest (0) to the full shade (1), on which text in the page's ink can still be read."""
    return f"fill:var(--heat, #4a9ad6);fill-opacity:{FAINTEST + (1 - FAINTEST) * share:.3f}"


def _box(x: float, y: float, width: float, height: float, style: str, radius: float = 3) -> str:
    return tag("rect", x=x, y=y, width=width, height=height, rx=radius, style=style)
