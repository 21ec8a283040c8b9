"""Bits a weight against error: the chart and the table that docs/quality.md opens with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import log
from typing import Any, NamedTuple

from qarvd.report.numerals import log_texts, log_ticks, number_text
from qarvd.report.svg import CHARACTER, canvas, colour, grid_line, legend, tag, text, title

from .tables import MODELS

OURS, BUDGET = "ours", "ours, with a bit budget"
STOCK, DATA_FREE = "ours, in ComfyUI's own formats", "ComfyUI's own formats, data-free"
PUBLISHED, NEAREST = "Q-ARVD, best form", "nearest"
SHOWN: dict[str, tuple[tuple[str, str, str], ...]] = {
    OURS: (
        ("w3a8", "ours_g64", "`--recipe w3a8 --group 64`"),
        ("w3a8", "ours", "`--recipe w3a8`"),
        ("w4a8", "ours_g64", "`--recipe w4a8 --group 64`"),
        ("w4a8", "ours_g32", "`--recipe w4a8 --group 32`"),
        ("w4a8", "ours", "**`--recipe w4a8`**"),
        ("w6a8", "ours", "`--recipe w6a8`"),
        ("w8a8", "ours", "`--recipe w8a8`"),
    ),
    BUDGET: (
        ("w3a8", "budget", '`--recipe w3a8 --target "3.65 bits"`'),
        ("w4a8", "budget", '**`--recipe w4a8 --target "4.65 bits"`**'),
    ),
    STOCK: (
        ("w4a8", "ours_stock_g64", "`--format asym_w4a8_int8 --group 64`"),
        ("w4a8", "ours_stock", "**`--format asym_w4a8_int8`**"),
        ("w6a8", "ours_stock", "`--format asym_w4a8_int8 --recipe w6a8`"),
        ("w8a8", "ours_stock", "`--format int8_tensorwise`"),
        ("w8a8", "ours_stock_plain", "`--format int8_tensorwise --rotation 0`"),
    ),
    DATA_FREE: (
        ("w4a8", "stock", "comfy-kitchen, `asym_w4a8_int8`"),
        ("w6a8", "stock", "comfy-kitchen, `asym_w4a8_int8` of 6 bits"),
        ("w8a8", "stock", "comfy-kitchen, `int8_tensorwise` with convrot"),
        ("w8a8", "stock_plain", "comfy-kitchen, `int8_tensorwise`"),
        ("w4a8", "stock_w4a4", "comfy-kitchen, `convrot_w4a4` (4-bit activations)"),
    ),
    PUBLISHED: (("w4a8", "published_dynamic", "Q-ARVD, best form"), ("w8a8", "published_dynamic", "Q-ARVD, best form")),
    NEAREST: (("w4a8", "nearest", "nearest, one scale"), ("w8a8", "nearest", "nearest, one scale")),
}
"""What is drawn, by line: section, method, and what it is called."""
WIDTH, HEIGHT, GAP = 540.0, 300.0, 30.0
PAPER, INK = "#ffffff", "#1f2328"


class Point(NamedTuple):
    """One way to store a model."""

    line: str
    label: str
    bits: float
    """Stored for each weight, scales and lists included."""
    error: dict[str, float]
    """MSE x 1000 by model."""
    seeds: int


def points(summary: Mapping[str, Any], weights: int) -> list[Point]:
    """What was measured of `SHOWN` on both models, whose linears have so many `weights`."""
    rows = {(s, row["model"], row["method"]): row for s, its in summary.items() if isinstance(its, list) for row in its}
    found = []
    for line, members in SHOWN.items():
        for section, method, label in members:
            each = [rows.get((section, model, method)) for model in MODELS]
            if all(each):
                error = {model: 1e3 * row["mse"] for model, row in zip(MODELS, each, strict=True) if row}
                bits = sum(8 * row["bytes"] / weights for row in each if row) / len(MODELS)
                found.append(Point(line, label, bits, error, min(row["calibration_seeds"] for row in each if row)))
    return found


def table(found: Sequence[Point]) -> str:
    """In Markdown, fewest bits first."""
    lines = ["| | bits a weight | natural, MSE x 1000 | twin | calibration seeds |", "|---|---|---|---|---|"]
    for point in sorted(found, key=lambda point: (round(point.bits, 1), point.error["twin"])):
        errors = " | ".join(f"{point.error[model]:.3g}" for model in MODELS)
        seeds = "" if point.line in (DATA_FREE, NEAREST) else point.seeds
        lines.append(f"| {point.label} | {point.bits:.2f} | {errors} | {seeds} |")
    return "\n".join(lines)


def chart(found: Sequence[Point]) -> str:
    """A drawing of its own, on paper: both models side by side."""
    names = list(dict.fromkeys(point.line for point in found))
    errors = [error for point in found for error in point.error.values()]
    ticks = log_ticks(min(errors), max(errors))
    key, top = legend(names, 2 * WIDTH, 0, 20)
    panels = [_panel(found, names, model, i * (WIDTH + GAP), top + 40, ticks) for i, model in enumerate(MODELS)]
    height = top + 40 + HEIGHT + 50
    paper = tag("rect", x=-20, y=-10, width=2 * WIDTH + GAP + 40, height=height + 20, style=f"fill:{PAPER}")
    name = "Error by bits a weight, on the demo model and on its twin with planted outliers"
    drawn = canvas(2 * WIDTH + GAP + 40, height + 20, name, paper, key, *panels)
    return drawn.replace("currentColor", INK).replace('viewBox="0 0', 'viewBox="-20 -10')


def _panel(
    found: Sequence[Point], names: Sequence[str], model: str, left: float, top: float, ticks: Sequence[float]
) -> str:
    start, bottom = left + 10 + CHARACTER * max(map(len, log_texts(ticks))), top + HEIGHT
    first, last = 3.0, 8.5

    def x(bits: float) -> float:
        return start + (bits - first) / (last - first) * (left + WIDTH - start)

    def y(error: float) -> float:
        return bottom - (log(error) - log(ticks[0])) / (log(ticks[-1]) - log(ticks[0])) * HEIGHT

    def parts() -> Iterator[str]:
        yield text(left, top - 12, f"{model}: squared error of the latents, x 1000", font_weight="600")
        for tick, label in zip(ticks, log_texts(ticks), strict=True):
            yield grid_line(start, y(tick), left + WIDTH, y(tick))
            yield text(start - 8, y(tick) + 4, label, "end")
        for bits in range(3, 9):
            yield grid_line(x(bits), bottom, x(bits), bottom + 5, strong=True)
            yield text(x(bits), bottom + 20, str(bits), "middle")
        yield text((start + left + WIDTH) / 2, bottom + 40, "bits a weight", "middle")
        for index, name in enumerate(names):
            its = sorted((p for p in found if p.line == name), key=lambda p: p.bits)
            path = "M" + "L".join(f"{x(p.bits):.1f} {y(p.error[model]):.1f}" for p in its)
            yield tag("path", d=path, style=f"fill:none;stroke:{colour(index)};stroke-width:2")
            for p in its:
                hover = title(f"{p.label.strip('*`')}: {p.bits:.2f} bits, {number_text(p.error[model])}")
                yield tag("circle", hover, cx=x(p.bits), cy=y(p.error[model]), r=4, style=f"fill:{colour(index)}")

    return tag("g", *parts())
