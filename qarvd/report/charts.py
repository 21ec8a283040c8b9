"""Charts as inline SVG: lines, bars, and outlier counts layer by layer."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from .numerals import drawable, linear_ticks, log_texts, log_ticks, number_text, tick_texts
from .svg import CHARACTER, COLOURS, canvas, colour, grid_line, legend, tag, text, title

WIDTH = 540.0
FAINT = "fill-opacity:.68"
DOTTED = 48
"""Up to this many points, each is drawn as a dot that tells its value."""


@dataclass(frozen=True)
class _Plot:
    """Where the steps and values of a line chart lie on the canvas, and which values do."""

    steps: tuple[float, float]
    """First and last."""
    values: tuple[float, float]
    """Lowest and highest."""
    left: float
    right: float
    top: float
    bottom: float
    log: bool
    """Whether values are placed by their logarithm."""

    def x(self, step: float) -> float:
        first, last = self.steps
        return self.left + (step - first) / (last - first) * (self.right - self.left)

    def y(self, value: float) -> float:
        scaled = math.log if self.log else float
        low, high = map(scaled, self.values)
        return self.bottom - (scaled(value) - low) / (high - low) * (self.bottom - self.top)

    def holds(self, *values: float) -> bool:
        return all(drawable(value, self.log) for value in values)


def line_chart(
    series: Mapping[str, Sequence[float]],
    x_label: str,
    y_label: str,
    log_y: bool = False,
    first: int = 0,
    intervals: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    dashed: Container[str] = (),
) -> str:
    """One line for each of `series`, over first, first + 1, ...; a value that can't be drawn leaves a gap.

    `intervals` (low, high) stand around the points of the series of that name; `dashed` series have no points.
    """
    intervals = intervals or {}
    drawn = [value for values in series.values() for value in values if drawable(value, log_y)]
    drawn += [end for ends in intervals.values() for pair in ends for end in pair if drawable(end, log_y)]
    name = f"{y_label} by {x_label}: {', '.join(series)}"
    if not drawn:
        return nothing(name, y_label)
    ticks = log_ticks(min(drawn), max(drawn)) if log_y else linear_ticks(min(drawn), max(drawn))
    labels = log_texts(ticks) if log_y else tick_texts(ticks)
    longest = max(len(values) for values in series.values())
    last = first + max(1, longest - 1)

    key, top = legend(list(series), WIDTH, 0, 38) if len(series) > 1 else ("", 26)
    left, top = 10 + CHARACTER * max(map(len, labels)), top + 8
    plot = _Plot((first, last), (ticks[0], ticks[-1]), left, WIDTH - 10, top, top + 230, log_y)
    parts = [text(0, 14, y_label, font_weight="600"), key, *_axes(plot, ticks, labels)]
    parts.append(text((plot.left + plot.right) / 2, plot.bottom + 38, x_label, "middle"))
    for index, (label, values) in enumerate(series.items()):
        points, ends = list(enumerate(values, first)), dict(enumerate(intervals.get(label, ()), first))
        marks = _line(plot, label, points, ends, colour(index), label in dashed)
        if longest <= DOTTED and label not in dashed:
            marks += _dots(plot, f"{label}, {x_label}", points, ends, colour(index))
        parts.append(tag("g", *marks))
    return canvas(WIDTH, plot.bottom + 46, name, *parts)


def _axes(plot: _Plot, ticks: Sequence[float], labels: Sequence[str]) -> Iterator[str]:
    """Both axes, with a grid line at each of the values `ticks`."""
    for tick, label in zip(ticks, labels, strict=True):
        yield grid_line(plot.left, plot.y(tick), plot.right, plot.y(tick))
        yield text(plot.left - 8, plot.y(tick) + 4, label, "end", style=FAINT)
    yield grid_line(plot.left, plot.bottom, plot.right, plot.bottom, strong=True)
    first, last = plot.steps
    steps = [tick for tick in linear_ticks(first, last, 8, whole=True) if first <= tick <= last]
    for tick, label in zip(steps, tick_texts(steps), strict=True):
        yield grid_line(plot.x(tick), plot.bottom, plot.x(tick), plot.bottom + 5, strong=True)
        yield text(plot.x(tick), plot.bottom + 19, label, "middle", style=FAINT)


def _line(
    plot: _Plot,
    label: str,
    points: Sequence[tuple[int, float]],
    ends: Mapping[int, tuple[float, float]],
    stroke: str,
    dashed: bool,
) -> list[str]:
    """A line through `points`, with gaps, and whiskers between `ends`."""
    runs = [list(run) for ok, run in groupby(points, lambda point: plot.holds(point[1])) if ok]
    moves = "".join("M" + "L".join(f"{plot.x(x):.1f} {plot.y(y):.1f}" for x, y in run) for run in runs)
    style = f"fill:none;stroke:{stroke};stroke-width:2;stroke-linejoin:round;stroke-linecap:round"
    path = tag("path", d=moves, style=f"{style};stroke-dasharray:{'5 5' if dashed else 'none'}")
    whiskers = [
        _whisker(plot.x(x), plot.y(least), plot.y(most), style)
        for x, (least, most) in ends.items()
        if plot.holds(least, most)
    ]
    return [title(label), path, *whiskers]


def _dots(
    plot: _Plot, what: str, points: Sequence[tuple[int, float]], ends: Mapping[int, tuple[float, float]], fill: str
) -> Iterator[str]:
    """A dot at each point, which tells its value on hover."""
    style = f"fill:{fill};stroke:var(--surface, none);stroke-width:1.5"
    for x, y in points:
        if plot.holds(y):
            within = " [{}, {}]".format(*map(number_text, ends[x])) if x in ends else ""
            hover = title(f"{what} {x}: {number_text(y)}{within}")
            yield tag("circle", hover, cx=plot.x(x), cy=plot.y(y), r=3.5, style=style)


def _whisker(x: float, low: float, high: float, style: str) -> str:
    return tag("path", d=f"M{x:.1f} {low:.1f}V{high:.1f}M{x - 4:.1f} {low:.1f}h8M{x - 4:.1f} {high:.1f}h8", style=style)


def bar_chart(values: Mapping[str, float], unit: str, beside: Sequence[float] = ()) -> str:
    """A horizontal bar from 0 for each of `values`, with its number; a value that is not finite has no bar.

    The axis has room for the values of charts `beside` it, too, so that bars compare.
    """
    name = f"{unit}: " + ", ".join(f"{label} {number_text(value)}" for label, value in values.items())
    finite = [value for value in values.values() if drawable(value)]
    if not finite:
        return nothing(name, unit)
    spanned = [0.0, *finite, *filter(drawable, beside)]
    ticks = linear_ticks(min(spanned), max(spanned))
    numbers = {label: number_text(value) for label, value in values.items()}
    left = 18 + CHARACTER * min(32, max(map(len, values)))
    right = WIDTH - 16 - CHARACTER * max(len(number_text(value)) for value in (*values.values(), *beside))
    top, pitch, thick = 30.0, 34.0, 22.0
    bottom = top + pitch * len(values)

    def place(value: float) -> float:
        return left + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (right - left)

    parts = [text(0, 14, unit, font_weight="600")]
    for tick, label in zip(ticks, tick_texts(ticks), strict=True):
        parts.append(grid_line(place(tick), top, place(tick), bottom, strong=tick == 0))
        parts.append(text(place(tick), bottom + 17, label, "middle", style=FAINT))
    for index, (label, value) in enumerate(values.items()):
        middle = top + pitch * (index + 0.5)
        end = place(value) if drawable(value) else place(0)
        shade = colour(index if len(values) <= len(COLOURS) else 0)
        bar = tag(
            "rect",
            x=min(end, place(0)),
            y=middle - thick / 2,
            width=abs(end - place(0)),
            height=thick,
            rx=3,
            style=f"fill:{shade}",
        )
        shown = label if len(label) <= 32 else label[:31] + "\N{HORIZONTAL ELLIPSIS}"
        number = text(max(end, place(0)) + 7, middle + 4, numbers[label], font_weight="600")
        hover = title(f"{label}: {numbers[label]} {unit}")
        parts.append(tag("g", hover, text(left - 9, middle + 4, shown, "end"), bar, number))
    return canvas(WIDTH, bottom + 24, name, *parts)


def stacked_counts(counts: Mapping[str, tuple[int, int]], y_label: str = "outlier channels") -> str:
    """A bar for each layer (count, of how many), in order, coloured by kind, the layers of a block standing together.

    Names are dotted paths: in `blocks.3.ffn.0` the block is `blocks.3` and the kind `ffn`.
    """
    name = f"{y_label} of {len(counts)} layers"
    if not counts:
        return nothing(name, y_label)
    wide = len(counts) > 80
    width = 2 * WIDTH if wide else WIDTH
    kinds = list(dict.fromkeys(_kind(layer) for layer in counts))
    key, top = legend(kinds, width, 0, 38) if len(kinds) > 1 else ("", 26)
    ticks = linear_ticks(0, max(1, *(count for count, _ in counts.values())), whole=True)
    labels = tick_texts(ticks)
    left, right, top = 10 + CHARACTER * max(map(len, labels)), width - 4, top + 8
    bottom = top + 220
    pitch = (right - left) / len(counts)

    def place(count: float) -> float:
        return bottom - count / ticks[-1] * (bottom - top)

    blocks = [(block, len(list(layers))) for block, layers in groupby(counts, _block)]
    stems = [block.rpartition(".")[0] for block, _ in blocks]
    stem = max(stems, key=stems.count)  # what the numbers under the axis count
    parts = [text(0, 14, y_label, font_weight="600"), key]
    x, free = left, left - 1
    for index, (block, layers) in enumerate(blocks):
        span = layers * pitch
        if index % 2 == 0:
            shade = "fill:currentColor;fill-opacity:.045"
            parts.append(tag("rect", x=x, y=top, width=span, height=bottom - top, style=shade))
        label = block.rpartition(".")[2][:16] if stems[index] == stem else ""
        half = len(label) * CHARACTER / 2
        if label and x + span / 2 - half >= free and x + span / 2 + half <= width:
            parts.append(text(x + span / 2, bottom + 17, label, "middle", style=FAINT))
            free = x + span / 2 + half + 8
        x += span
    for tick, label in zip(ticks, labels, strict=True):
        parts.append(grid_line(left, place(tick), right, place(tick), strong=tick == 0))
        parts.append(text(left - 8, place(tick) + 4, label, "end", style=FAINT))
    for index, (layer, (count, total)) in enumerate(counts.items()):
        x = left + index * pitch
        hover = title(f"{layer}: {count:,} of {total:,} channels")
        reach = tag("rect", x=x, y=top, width=pitch, height=bottom - top, style="fill:transparent", class_="reach")
        bar = tag(
            "rect",
            x=x + pitch * 0.1,
            y=place(count),
            width=pitch * 0.8,
            height=bottom - place(count),
            style=f"fill:{colour(kinds.index(_kind(layer)))}",
        )
        parts.append(tag("g", hover, reach, bar))
    parts.append(text((left + right) / 2, bottom + 36, stem or "layers", "middle"))
    return canvas(width, bottom + 44, name, *parts, wide=wide)


def _block(layer: str) -> str:
    """`blocks.3.ffn.0` -> `blocks.3`; a name without a number is a block of its own."""
    words = layer.split(".")
    numbered = next((i for i, word in enumerate(words) if word.isdecimal()), None)
    return layer if numbered is None else ".".join(words[: numbered + 1])


def _kind(layer: str) -> str:
    """`blocks.3.ffn.0` -> `ffn`; a name without a number is of the kind of its first word."""
    inside = layer[len(_block(layer)) :].strip(".")
    return (inside or layer).split(".")[0]


def nothing(name: str, label: str) -> str:
    """The drawing of a chart that has no value."""
    note = text(WIDTH / 2, 70, "no value to draw", "middle", style=FAINT)
    return canvas(WIDTH, 110, name, text(0, 14, label, font_weight="600"), note)
