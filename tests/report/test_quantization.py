"""The quantization report draws what it is given: every layer, number, interval and frame, whatever their names."""

import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qarvd.report import strips as strips_module
from qarvd.report.charts import line_chart
from qarvd.report.chunks import Sensitivity, sensitivity_figures
from qarvd.report.heat import Cell, heat_map
from qarvd.report.layers import Inputs, Layer, Variant, error_figures, layer_rows, norms_figure, outlier_figure, place
from qarvd.report.norms import Norms, norm_charts
from qarvd.report.page import Chapter, Figure, Table, render_page
from qarvd.report.quantization import chunks_chapter
from qarvd.report.sheet import LINE, MARGIN

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "<script>alert('1')</script> & \"quotes\""
numbers = st.none() | st.floats() | st.floats(0, 1)
names = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=30)


def parse(svg: str) -> ElementTree.Element:
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg" and root[0].tag == f"{SVG}title" and root[0].text
    assert not re.search(r"\b(nan|inf)\b", " ".join(re.findall(r' (?:x|y|d|width|height|style)="([^"]*)"', svg)))
    return root


def hovers(svg: str) -> list[str]:
    return [element.text or "" for element in parse(svg).iter(f"{SVG}title")][1:]


def words(svg: str) -> list[str]:
    return [element.text or "" for element in parse(svg).iter(f"{SVG}text")]


def box(svg: str, told: str) -> ElementTree.Element:
    """The rectangle that says `told`."""
    group = next(g for g in parse(svg).iter(f"{SVG}g") if g[0].text == told)
    return group[1]


def shade(svg: str, told: str) -> float | None:
    found = re.search(r"fill-opacity:([\d.]+)", box(svg, told).get("style", ""))
    return float(found[1]) if found else None


@settings(deadline=None)
@given(st.lists(st.builds(Cell, names, names, numbers, names), max_size=20))
def test_a_heat_map_is_valid_svg_for_any_numbers_and_names(cells: list[Cell]) -> None:
    assert hovers(heat_map(cells, "block", "count")) == [cell.hover for cell in cells]


def test_a_higher_value_has_a_deeper_shade_and_a_value_without_one_has_none() -> None:
    values = {"low": 1.0, "mid": 10.0, "high": 100.0, "zero": 0.0, "lost": None, "broken": math.nan}
    svg = heat_map([Cell(name, "0", value, name) for name, value in values.items()], "block", "count", missing="kept")
    low, mid, high = (shade(svg, name) or 0 for name in ("low", "mid", "high"))
    assert mid - low == pytest.approx(high - mid, abs=0.01) and mid > low > 0
    assert [shade(svg, name) for name in ("zero", "lost", "broken")] == [None] * 3
    dashed = ["dasharray" in box(svg, name).get("style", "") for name in ("zero", "lost", "broken")]
    assert dashed == [False, True, True] and "kept" in words(svg)


def test_cells_lie_in_the_order_in_which_rows_and_columns_come() -> None:
    svg = heat_map([Cell(row, column, 1.0, row + column) for row in "ba" for column in ("10", "9")], "block", "count")
    at = {told: (float(box(svg, told).get("y", "")), float(box(svg, told).get("x", ""))) for told in hovers(svg)}
    assert sorted(at, key=lambda told: at[told]) == ["b10", "b9", "a10", "a9"]


def test_thirty_columns_are_wide_and_show_numbers_only_where_they_fit() -> None:
    cells = [Cell("ffn.2", str(block), 4480.0 + block, f"block {block}") for block in range(30)]
    short = heat_map(cells, "block", "count", "{:.0f}".format)
    assert {"4480", "4509", "0", "29"} <= set(words(short)) and 'class="chart wide"' in short
    assert "4490" in words(short) and "4490.0000" not in words(heat_map(cells, "block", "count", "{:.4f}".format))


def test_intervals_stand_around_their_points_and_dashed_lines_have_none() -> None:
    series = {"measured": [0.5, 0.25], "fit": [0.4, 0.3]}
    svg = line_chart(series, "chunk", "share", first=1, intervals={"measured": [(0.4, 0.7), (0.2, 0.3)]}, dashed="fit")
    assert hovers(svg) == ["measured", "measured, chunk 1: 0.5 [0.4, 0.7]", "measured, chunk 2: 0.25 [0.2, 0.3]", "fit"]
    circles = [float(circle.get("cy", "")) for circle in parse(svg).iter(f"{SVG}circle")]
    paths = [path.get("d", "") for path in parse(svg).iter(f"{SVG}path")]
    whiskers = [re.match(r"M[\d.]+ ([\d.]+)V([\d.]+)M", path) for path in paths]
    ends = [(float(found[1]), float(found[2])) for found in whiskers if found]
    (low, high), _ = ends
    assert len(ends) == 2 and all(a > y > b for (a, b), y in zip(ends, circles, strict=True))
    assert (low - circles[0]) / (circles[0] - high) == pytest.approx(0.5, abs=0.01)
    assert sum("stroke-dasharray:5 5" in path.get("style", "") for path in parse(svg).iter(f"{SVG}path")) == 1


NORMS = Norms("blocks.0.ffn.0", [9.0, 5.0, 2.0, 1.0], 3.0)


def test_columns_above_the_threshold_are_counted_and_told() -> None:
    assert NORMS.above == 2 and replace(NORMS, threshold=0.0).above == 0
    svg = norm_charts([NORMS, replace(NORMS, layer="plain", threshold=0.0)], {"w4": [2, 0]})
    assert "2 of 4 above 3" in words(svg) and "no threshold: all columns are alike" in words(svg)
    assert "w4: 2 of 4 channels chosen in blocks.0.ffn.0" in hovers(svg)
    assert not any("chosen in plain" in told for told in hovers(svg))


def test_the_chosen_channels_end_where_the_line_stands() -> None:
    svg = norm_charts([NORMS], {"w4": [2]})
    line = next(g for g in parse(svg).iter(f"{SVG}g") if (g[0].text or "").startswith("w4:"))[1].get("d", "")
    curve = max((path.get("d", "") for path in parse(svg).iter(f"{SVG}path")), key=lambda d: d.count("L"))
    x = [float(point.split()[0]) for point in curve[1:].split("L")]
    assert len(x) == 4 and x[1] < float(line[1:].split()[0]) < x[2]


@settings(deadline=None)
@given(st.lists(st.floats() | st.floats(0, 10), max_size=40), st.floats(0, 20), st.integers(0, 50), names)
def test_norm_charts_are_valid_svg_for_any_numbers(norms: list[float], limit: float, chosen: int, name: str) -> None:
    parse(norm_charts([Norms(name, sorted(norms, reverse=True), limit)], {name: [chosen]}))


SENSITIVITY = Sensitivity([3, 3, 1], [0.6, 0.3, 0.1], [0.5, 0.2, 0.05], [0.7, 0.4, 0.2], [1, 0.8, 0.4], [1, 1, 1], 0, 8)


def test_the_fitted_share_is_the_fitted_effect_on_all_frames_from_the_chunk_on() -> None:
    assert SENSITIVITY.fitted_share == pytest.approx([7 / 12, 4 / 12, 1 / 12])
    assert replace(SENSITIVITY, fitted=[0, 0, 0]).fitted_share == [0, 0, 0]


def test_effects_that_were_filled_in_are_told_from_measured_ones() -> None:
    for horizon, told in (((), False), ((3, 2, 1), False), ((2, 1, 1), True)):
        share, _ = sensitivity_figures("w4", replace(SENSITIVITY, horizon=horizon))
        assert ("followed for 2, 1, 1 chunks" in share.caption and "the rest is estimated" in share.caption) == told


def test_chunks_are_drawn_for_measured_variants_and_the_others_are_named() -> None:
    share, effect = sensitivity_figures("w4", SENSITIVITY)
    assert "8 prompts" in share.caption and "measured, chunk 1: 0.6 [0.5, 0.7]" in hovers(share.svg)
    assert "measured, chunk 3: 0.4" in hovers(effect.svg)
    chapter = chunks_chapter([VARIANT, replace(VARIANT, name="plain", sensitivity=None)])
    assert len(chapter.parts) == 2 and "not measured for plain." in chapter.text
    assert "plain" not in chunks_chapter([VARIANT]).text


def test_one_calibration_is_drawn_once_with_the_bits_it_was_measured_at() -> None:
    told = replace(SENSITIVITY, bits=4)
    one, other, alone = (replace(VARIANT, name=name, sensitivity=told) for name in ("w4", "w8", "w9"))
    alone = replace(alone, sensitivity=replace(told, bits=8))
    titles = [part.title for part in chunks_chapter([one, alone, other]).parts if isinstance(part, Figure)]
    assert titles == [f"{what}, {name}" for name in ("w4, w8", "w9") for what in WHAT]
    share, effect = sensitivity_figures("w4", told)
    assert "measured with 4-bit weights" in share.caption and "says nothing; it needs 4 or more" in effect.caption


WHAT = ("Sensitivity of each chunk", "Effect on each affected frame")


INPUTS = [
    Inputs(("text.0",), Norms("text.0", [1.0, 1.0], 0.0)),
    Inputs(("blocks.0.attn.k", "blocks.0.attn.v"), Norms("blocks.0.attn.k, v", [5.0, 4.0, 1.0, 1.0], 3.0)),
    Inputs(("blocks.0.ffn.0",), NORMS),
    Inputs(("blocks.1.ffn.0",), replace(NORMS, layer="blocks.1.ffn.0", norms=[9.0, 2.0, 1.0, 1.0])),
]
LAYERS = {
    "text.0": Layer(0, 0.0, kept=True),
    "blocks.0.attn.k": Layer(1, 0.002),
    "blocks.0.attn.v": Layer(1, 0.004, bits="4g16"),
    "blocks.0.ffn.0": Layer(2, 0.02),
    "blocks.1.ffn.0": Layer(0, 0.04),
}
VARIANT = Variant("w4", LAYERS, "output", SENSITIVITY)


def test_a_name_splits_into_type_and_depth() -> None:
    assert place("blocks.12.cross_attn.q") == ("cross_attn.q", "12")
    assert place("text_embedding.0") == ("text_embedding.0", "\N{EN DASH}")


def test_the_outlier_map_tells_layer_count_threshold_and_columns_above_it() -> None:
    figure = outlier_figure(INPUTS, VARIANT)
    assert hovers(figure.svg) == [
        "text.0: kept in 16 bits; no threshold, as all columns are alike",
        "blocks.0.attn.k, v: 1 of 4 channels; 2 above the threshold 3",
        "blocks.0.ffn.0: 2 of 4 channels; 2 above the threshold 3",
        "blocks.1.ffn.0: 0 of 4 channels; 1 above the threshold 3",
    ]
    assert {"attn.k, v", "ffn.0", "text.0", "block"} <= set(words(figure.svg))


def test_column_norms_are_those_of_each_types_layer_with_most_above_the_threshold() -> None:
    told = words(norms_figure(INPUTS, [VARIANT]).svg)
    assert {"text.0", "blocks.0.attn.k, v", "blocks.0.ffn.0"} <= set(told) and "blocks.1.ffn.0" not in told


def test_errors_are_told_in_full_and_written_in_units_of_the_least_ones_power_of_ten() -> None:
    by_layer, by_kind = error_figures([VARIANT])
    assert "blocks.1.ffn.0: relative squared error 0.04" in hovers(by_layer.svg)
    assert "relative squared error of the output, in 10\u207b\u00b3" in words(by_layer.svg)
    assert {"2.0", "4.0", "20", "40"} <= set(words(by_layer.svg))
    unit = "relative squared error of the output, in 10\u207b\u00b3"
    assert hovers(by_kind.svg) == [f"attn.k: 2 {unit}", f"attn.v: 4 {unit}", f"ffn.0: 30 {unit}"]


def test_errors_of_one_measure_share_a_unit_and_a_scale_so_that_files_compare() -> None:
    coarse = {name: replace(layer, error=100 * layer.error) for name, layer in LAYERS.items()}
    other = replace(VARIANT, name="w2", layers=coarse)
    alone = replace(VARIANT, name="w3", measure="weight")
    by_layer, coarser, by_weight, by_kind, coarser_kind, _ = error_figures([VARIANT, other, alone])
    unit = "relative squared error of the output, in 10\u207b\u00b3"
    assert all(unit in words(figure.svg) for figure in (by_layer, coarser, by_kind, coarser_kind))
    told = "blocks.1.ffn.0: relative squared error 0.04"
    assert (shade(by_layer.svg, told) or 1) < 0.7 < (shade(by_weight.svg, told) or 0)

    def length(svg: str, kind: str) -> float:
        (bar,) = (g[2] for g in parse(svg).iter(f"{SVG}g") if (g[0].text or "").startswith(f"{kind}:"))
        return float(bar.get("width", ""))

    assert 100 * length(by_kind.svg, "ffn.0") == pytest.approx(length(coarser_kind.svg, "ffn.0"), rel=0.05)


def test_the_mean_of_a_layer_type_is_over_the_blocks_alone() -> None:
    outside = replace(VARIANT, layers={**LAYERS, "text.0": Layer(0, 0.5)})
    by_layer, by_kind = error_figures([outside])
    assert "text.0: relative squared error 0.5" in hovers(by_layer.svg)
    assert not any(told.startswith("text.0") for told in hovers(by_kind.svg))


def test_a_variant_that_keeps_all_layers_has_no_errors_to_draw() -> None:
    kept = replace(VARIANT, layers=dict.fromkeys(LAYERS, Layer(0, 0.0, kept=True)))
    by_layer, by_kind = error_figures([kept])
    assert hovers(by_layer.svg) == [f"{name}: kept in 16 bits" for name in LAYERS]
    assert not hovers(by_kind.svg)


def test_the_table_has_a_row_for_each_layer_and_nothing_for_one_that_was_kept() -> None:
    rows = {row["layer"]: row for row in layer_rows(INPUTS, [VARIANT])}
    assert list(rows) == list(LAYERS)
    assert rows["text.0"]["outliers, w4"] is rows["text.0"]["output error, w4"] is rows["text.0"]["threshold"] is None
    assert rows["blocks.0.attn.v"] == {
        **{"layer": "blocks.0.attn.v", "channels": 4, "threshold": 3.0, "above it": 2},
        **{"bits, w4": "4g16", "outliers, w4": 1, "output error, w4": 0.004},
    }


def test_strips_show_each_variant_in_its_row_and_each_frame_in_its_column(monkeypatch: pytest.MonkeyPatch) -> None:
    sheets: list[torch.Tensor] = []
    monkeypatch.setattr(strips_module, "png_bytes", lambda image: sheets.append(image) or b"")
    full = torch.arange(1, 9).view(2, 4, 1, 1).expand(2, 4, 64, 64) / 10  # [prompts, frames, height, width]
    picture = strips_module.strips({"full": full, "w4": full / 2}, ["one", "two"])
    assert all(name in picture.caption for name in ("full", "w4", "one", "two"))
    image = sheets[0]
    half = image.shape[0] // 2
    row = LINE + 8 + 64 + 2 + 20
    first = MARGIN + LINE + 8 + LINE + 20 + LINE + 8 + 32  # the middle of the first strip
    for prompt in range(2):
        for frame in range(4):
            x, y = MARGIN + 33 + 65 * frame, half * prompt + first
            shown = [image[y, x, 0].item(), image[y + row, x, 0].item()]
            assert shown == pytest.approx([full[prompt, frame, 0, 0].item(), full[prompt, frame, 0, 0].item() / 2])


def test_a_long_clip_is_thinned_out_evenly_to_fit_the_page() -> None:
    def columns(frames: int) -> int:
        picture = strips_module.strips({"full": torch.rand(1, frames, 64, 64)}, ["one"])
        return int.from_bytes(picture.png[16:20], "big")  # width, PNG specification section 11.2.2

    assert columns(4) < columns(16) and columns(160) <= 1120


def test_names_are_text_and_never_markup() -> None:
    layers = {name.replace("attn", HOSTILE): layer for name, layer in LAYERS.items()}
    inputs = [replace(group, layers=tuple(n.replace("attn", HOSTILE) for n in group.layers)) for group in INPUTS]
    variant = Variant(HOSTILE, layers, HOSTILE, SENSITIVITY)
    figures = [outlier_figure(inputs, variant), norms_figure(inputs, [variant]), *error_figures([variant])]
    chapter = Chapter(HOSTILE, HOSTILE, [*figures, Table(HOSTILE, layer_rows(inputs, [variant]), folded=True)])
    assert "<script" not in render_page("title", "", chapters=[chapter])
    assert all(HOSTILE in "".join(parse(figure.svg).itertext()) for figure in figures if "norms" not in figure.title)


def test_a_chapter_has_its_heading_its_figures_and_its_folded_table() -> None:
    parts = [Figure("figure", "", line_chart({"a": [1.0, 2.0]}, "x", "y")), Table("rows", [{"a": 1}], folded=True)]
    page = render_page("title", "", chapters=[Chapter("part", "one\n\ntwo", parts), Chapter("empty", "words", [])])
    assert page.index("<h2>part</h2><p>one</p><p>two</p>") < page.index("<h3>figure</h3>") < page.index("<details>")
    assert page.count("<summary>rows</summary>") == 1 and page.count("<details>") == page.count("</details>") == 1
    assert "<h2>empty</h2><p>words</p>" in page and page.count('class="grid even"') == 1
