"""Charts are valid, self-contained SVG that says what it shows, whatever the numbers and names are."""

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qarvd.report.charts import bar_chart, line_chart, stacked_counts
from qarvd.report.numerals import linear_ticks, log_texts, log_ticks, number_text, tick_texts

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "<script>alert('1')</script> & \"quotes\""
numbers = st.floats() | st.floats(-1e6, 1e6)
names = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12)


def parse(svg: str) -> ElementTree.Element:
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg" and root[0].tag == f"{SVG}title" and root[0].text
    assert not re.search(r"\b(nan|inf)\b", " ".join(re.findall(r' (?:x|y|d|cx|cy|width|height)="([^"]*)"', svg)))
    return root


def hovers(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}title")][1:]


@settings(deadline=None)
@given(st.dictionaries(names, st.lists(numbers, max_size=60), max_size=4), st.booleans())
def test_a_line_chart_is_valid_svg_for_any_numbers(series: dict[str, list[float]], log_y: bool) -> None:
    parse(line_chart(series, "frame", "error", log_y))


@settings(deadline=None)
@given(st.dictionaries(names, numbers, max_size=9))
def test_a_bar_chart_is_valid_svg_for_any_numbers(values: dict[str, float]) -> None:
    parse(bar_chart(values, "MB"))


@settings(deadline=None)
@given(st.dictionaries(names, st.tuples(st.integers(0, 9000), st.integers(0, 9000)), max_size=30))
def test_a_count_chart_is_valid_svg_for_any_names(counts: dict[str, tuple[int, int]]) -> None:
    parse(stacked_counts(counts))


def test_names_are_text_and_never_markup() -> None:
    for svg in (
        line_chart({HOSTILE: [1, 2], "b": [2, 1]}, HOSTILE, HOSTILE),
        bar_chart({HOSTILE: 1.0}, HOSTILE),
        stacked_counts({HOSTILE: (1, 2), "b.1.c": (0, 2)}, HOSTILE),
    ):
        assert "<script" not in svg
        assert all(element.tag != f"{SVG}script" for element in parse(svg).iter())
        assert HOSTILE in "".join(parse(svg).itertext())


def test_a_value_that_cannot_be_drawn_leaves_a_gap() -> None:
    def strokes(svg: str) -> list[int]:
        return [(path.get("d") or "").count("M") for path in parse(svg).iter(f"{SVG}path")]

    values = [1.0, 2.0, math.nan, 3.0, 0.0, 1.0]
    assert strokes(line_chart({"a": values}, "frame", "error")) == [2]
    assert strokes(line_chart({"a": values}, "frame", "error", log_y=True)) == [3]


def test_a_higher_value_is_drawn_higher_and_a_later_one_further_right() -> None:
    circles = list(parse(line_chart({"a": [1, 10, 100]}, "frame", "error", log_y=True)).iter(f"{SVG}circle"))
    x = [float(circle.get("cx", "nan")) for circle in circles]
    y = [float(circle.get("cy", "nan")) for circle in circles]
    assert x == sorted(x) and y == sorted(y, reverse=True)
    assert y[0] - y[1] == pytest.approx(y[1] - y[2], abs=0.02)


def test_points_tell_their_value_and_count_from_first() -> None:
    told = hovers(parse(line_chart({"w8a8": [0.5, 0.25]}, "frame", "error", first=7)))
    assert told == ["w8a8", "w8a8, frame 7: 0.5", "w8a8, frame 8: 0.25"]


def test_bars_are_as_long_as_their_values() -> None:
    bars = [r for r in parse(bar_chart({"a": 100, "b": 50, "c": -25, "d": math.nan}, "MB")).iter(f"{SVG}rect")]
    a, b, c, d = (float(bar.get("width", "nan")) for bar in bars)
    assert (a / b, b / c, d) == (pytest.approx(2, rel=1e-3), pytest.approx(2, rel=1e-3), 0)


def test_each_layer_tells_its_name_its_outliers_and_its_channels() -> None:
    counts = {f"blocks.{b}.{n}": (b * 32, 1536) for b in range(30) for n in ("self_attn.q", "self_attn.o", "ffn.0")}
    svg = stacked_counts(counts)
    assert hovers(parse(svg)) == [f"{layer}: {n} of 1,536 channels" for layer, (n, _) in counts.items()]
    words = [element.text for element in parse(svg).iter(f"{SVG}text")]
    assert {"self_attn", "ffn", "blocks", "0", "29"} <= set(words)


@settings(deadline=None)
@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.booleans())
def test_linear_ticks_are_round_even_and_cover_the_range(low: float, span: float, whole: bool) -> None:
    high = low + span
    ticks = linear_ticks(low, high, whole=whole)
    slack = 1e-6 * max(abs(low), abs(high), span)
    assert ticks[0] <= low + slack and ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= 9
    assert len(set(tick_texts(ticks))) == len(ticks) or span < 1e-4 * abs(low)
    if whole:
        assert all(tick == round(tick) for tick in ticks)


@settings(deadline=None)
@given(st.floats(1e-30, 1e30), st.floats(1, 1e12))
def test_log_ticks_rise_and_cover_the_range(low: float, ratio: float) -> None:
    ticks = log_ticks(low, low * ratio)
    assert ticks[0] <= low * (1 + 1e-6) and ticks[-1] >= low * ratio * (1 - 1e-6)
    assert ticks == sorted(set(ticks)) and 2 <= len(ticks) <= 9
    assert len(set(log_texts(ticks))) == len(ticks)


def test_numbers_read_naturally() -> None:
    read = {0: "0", 0.98123: "0.9812", 2842: "2,842", 1234567.8: "1,234,568", 1e-7: "1.000e-07", -12.5: "-12.5"}
    assert {value: number_text(value) for value in read} == read
    assert tick_texts([0.0, 0.25, 0.5]) == ["0.00", "0.25", "0.50"]
    assert log_texts([1e-5, 1e-3, 1e-1]) == ["10\u207b\u2075", "10\u207b\u00b3", "10\u207b\u00b9"]
