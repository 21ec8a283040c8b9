"""The few words of SVG that the charts are written in."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

COLOURS = ("#0b6fb8", "#c9510c", "#00856a", "#a8488f", "#8f6b00", "#5a55c9")
"""Series colours that stay apart for colour-blind readers; a page may override them as --series-1 to --series-6."""
CHARACTER = 7.4
"""Mean width of a character of the 13 px text, in pixels."""


def colour(index: int) -> str:
    """CSS colour of the series `index`; they repeat after six."""
    index %= len(COLOURS)
    return f"var(--series-{index + 1}, {COLOURS[index]})"


def tag(name: str, *children: str, **attributes: str | float) -> str:
    """An element; `children` are markup, attribute values are escaped, and `_` in their names means `-`."""
    words = "".join(f' {key.strip("_").replace("_", "-")}="{_value(v)}"' for key, v in attributes.items())
    return f"<{name}{words}>{''.join(children)}</{name}>" if children else f"<{name}{words}/>"


def _value(value: str | float) -> str:
    return escape(value) if isinstance(value, str) else f"{round(value, 2):g}"


def title(text: str) -> str:
    """The name of the element it is in: read aloud, and shown on hover."""
    return tag("title", escape(text, quote=False))


def text(x: float, y: float, content: str, anchor: str = "start", **attributes: str | float) -> str:
    """Escaped text whose baseline is at `y`."""
    return tag("text", escape(content, quote=False), x=x, y=y, text_anchor=anchor, **attributes)


def grid_line(x1: float, y1: float, x2: float, y2: float, strong: bool = False) -> str:
    """A line that stays behind the data."""
    style = f"stroke:currentColor;stroke-opacity:{0.45 if strong else 0.13}"
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, style=style)


def legend(names: Sequence[str], width: float, x: float, y: float) -> tuple[str, float]:
    """A swatch and a name for each series, wrapped at `width`, and the y below them."""
    parts, left = [], x
    for index, name in enumerate(names):
        needed = 18 + len(name) * CHARACTER + 18
        if left > x and left + needed - 18 > width:
            left, y = x, y + 19
        parts.append(tag("rect", x=left, y=y - 10, width=12, height=12, rx=3, style=f"fill:{colour(index)}"))
        parts.append(text(left + 18, y, name))
        left += needed
    return "".join(parts), y + 12


def canvas(width: float, height: float, name: str, *children: str, wide: bool = False) -> str:
    """The whole drawing, in the text colour of the page around it; `name` is its text alternative.

    `wide` asks the page for a row of its own.
    """
    return tag(
        "svg",
        title(name),
        *children,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        class_="chart wide" if wide else "chart",
        style="width:100%;height:auto;font:13px system-ui,sans-serif;fill:currentColor",
    )
