"""Column norms beside the detector's threshold, a small chart for each layer, as one inline SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .charts import FAINT, WIDTH, nothing
from .numerals import drawable, linear_ticks, number_text, tick_texts
from .svg import CHARACTER, canvas, colour, grid_line, tag, text, title

ACROSS, TALL = 3, 214
"""Charts in a row, and the height of each."""
POINTS = 160
"""About as many points of a curve are drawn."""


@dataclass(frozen=True)
class Norms:
    """The column norms of one layer, or of linears that read the same input."""

    layer: str
    norms: Sequence[float]
    """L2 norm of each input channel, largest first."""
    threshold: float
    """The detector's; 0 where all norms are alike."""

    @property
    def above(self) -> int:
        """Columns above the threshold."""
        return sum(norm > self.threshold for norm in self.norms) if self.threshold > 0 else 0


def norm_charts(panels: Sequence[Norms], chosen: Mapping[str, Sequence[int]]) -> str:
    """Sorted column norms by rank (logarithmic), the threshold, and how many were chosen by each variant.

    `chosen` maps a variant to its number of outlier channels in each panel.
    """
    drawn = [i for i, panel in enumerate(panels) if panel.norms and all(drawable(n) and n >= 0 for n in panel.norms)]
    if not drawn:
        return nothing("column norms: none", "column norm")
    key, width = _key(list(chosen)), 2 * WIDTH
    pitch = width / ACROSS
    parts = [text(0, 14, "column norm, by rank of the input channel", font_weight="600"), key]
    for place, index in enumerate(drawn):
        marks = _panel(panels[index], {name: counts[index] for name, counts in chosen.items()}, pitch - 24)
        left, top = pitch * (place % ACROSS), 56 + TALL * (place // ACROSS)
        parts.append(tag("g", *marks, transform=f"translate({left:.1f} {top})"))
    height = 56 + TALL * math.ceil(len(drawn) / ACROSS)
    hover = "; ".join(_hover(panels[index]) for index in drawn)
    return canvas(width, height, f"Sorted column norms and thresholds: {hover}", *parts, wide=True)


def _key(variants: Sequence[str]) -> str:
    """What the lines mean, in one line."""
    styles = {"column norm": _stroke(0), "detector's threshold": _stroke(1, "5 4")}
    styles |= {f"chosen in {name}": _chosen(index, len(variants)) for index, name in enumerate(variants)}
    parts, x = [], 0.0
    for name, style in styles.items():
        parts += [tag("path", d=f"M{x:.1f} 36h22", style=style), text(x + 28, 40, name)]
        x += 28 + CHARACTER * len(name) + 20
    return "".join(parts)


def _panel(panel: Norms, chosen: Mapping[str, int], width: float) -> list[str]:
    """The marks of one chart, drawn from (0, 0)."""
    count = len(panel.norms)
    ticks = linear_ticks(0, max(panel.norms[0], panel.threshold), 4)
    labels = tick_texts(ticks)
    left, right, top, bottom = 10 + CHARACTER * max(map(len, labels)), width, 44.0, TALL - 44.0

    def place_x(rank: float) -> float:
        return left + math.log(rank) / math.log(max(2, count)) * (right - left)

    def place_y(norm: float) -> float:
        return bottom - norm / ticks[-1] * (bottom - top)

    shown = panel.layer if len(panel.layer) <= 42 else panel.layer[:41] + "\N{HORIZONTAL ELLIPSIS}"
    parts = [title(_hover(panel)), text(0, 12, shown, font_weight="600")]
    parts.append(text(0, 30, _threshold(panel), style=FAINT))
    for tick, label in zip(ticks, labels, strict=True):
        parts.append(grid_line(left, place_y(tick), right, place_y(tick), strong=tick == 0))
        parts.append(text(left - 8, place_y(tick) + 4, label, "end", style=FAINT))
    for rank, anchor in _ranks(count, right - left):
        parts.append(grid_line(place_x(rank), bottom, place_x(rank), bottom + 5, strong=True))
        parts.append(text(place_x(rank), bottom + 19, f"{rank:,}", anchor, style=FAINT))
    if panel.threshold > 0:
        y = place_y(panel.threshold)
        parts.append(tag("path", d=f"M{left:.1f} {y:.1f}H{right:.1f}", style=_stroke(1, "5 4")))
    for index, (name, number) in enumerate(chosen.items()):
        if 0 < number < count:
            hover = title(f"{name}: {number:,} of {count:,} channels chosen in {panel.layer}")
            d = f"M{place_x(number + 0.5):.1f} {top:.1f}V{bottom:.1f}"
            line = tag("path", d=d, style=_chosen(index, len(chosen)))
            parts.append(tag("g", hover, line))
    picked = sorted({min(count, round(count ** (step / POINTS))) for step in range(POINTS + 1)})
    points = "L".join(f"{place_x(rank):.1f} {place_y(panel.norms[rank - 1]):.1f}" for rank in picked)
    return [*parts, tag("path", d=f"M{points}", style=_stroke(0))]


def _ranks(count: int, width: float) -> list[tuple[int, str]]:
    """Ranks to mark under an axis of `width`, and how each is anchored: powers of ten and the last one."""
    tens = [10**e for e in range(math.ceil(math.log10(count)))]
    room = (CHARACTER * len(f"{count:,}") * 2 + 8) / width * math.log(max(2, count))
    kept = [(rank, "middle") for rank in tens if math.log(count / rank) > room]
    return [*kept, (count, "end")] if count > 1 else [(1, "middle")]


def _stroke(index: int, dashes: str = "none") -> str:
    return f"fill:none;stroke:{colour(index)};stroke-width:2;stroke-dasharray:{dashes}"


def _chosen(index: int, count: int) -> str:
    """Dashes that leave room for those of the other variants, where lines fall on each other."""
    return f"{_stroke(index + 2, f'4 {max(4, 4 * (count - 1))}')};stroke-dashoffset:{-4 * index}"


def _threshold(panel: Norms) -> str:
    if panel.threshold <= 0:
        return "no threshold: all columns are alike"
    return f"{panel.above:,} of {len(panel.norms):,} above {number_text(panel.threshold)}"


def _hover(panel: Norms) -> str:
    return f"{panel.layer}: {_threshold(panel)}, the largest {number_text(panel.norms[0])}"
