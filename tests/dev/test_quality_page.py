"""The tables of docs/quality.md are made from the measurements, each between its marks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from baselines import frontier
from quality import MODELS, filled, summarise

JUDGED = {key: [0.5, 0.5] for key in ("mse", "mse_last", "digit", "motion")}


def results(path: Path, *methods: str, error: float) -> Path:
    """A file of one run of each method, whose errors are `error`, twice that, and so on."""
    runs: dict[str, Any] = {
        f"w4a8/twin/{method}/0": {**JUDGED, "mse": [error * rank] * 2, "bytes": 7000, "seconds": 3.0}
        for rank, method in enumerate(methods, 1)
    }
    path.write_text(json.dumps(summarise(runs, dict.fromkeys(MODELS, JUDGED))))
    return path


def test_each_mark_gets_the_tables_of_its_file_and_the_text_around_stays(tmp_path: Path) -> None:
    main = results(tmp_path / "main.json", "ours", "stock", "ours_stock", error=0.25)
    other = results(tmp_path / "other.json", "ours", "gptq", error=0.5)
    names = ("comparisons", "tables", "untouched")
    page = "# Text\n" + "".join(f"<!-- {name} -->\nold\n<!-- end -->\nbetween\n" for name in names)
    made = filled(page, main, other)
    parts = re.split(r"<!-- \w+ -->", made)
    assert parts[::2] == ["# Text\n", *["\nbetween\n"] * 3]
    compared, first, second = parts[1::2]
    assert "| stock |  | 0.50x [0.50, 0.50] |  |  |\n" in compared  # ours over it, of the twin at 4 bits
    assert "| a second scale |  |  | 0.33x [0.33, 0.33] | 1 |\n" in compared
    assert "### w4a8, twin model\n" in first and "| stock | 500 [500, 500] |" in first
    assert second.count("###") == 1 and "### w4a8, untouched prompts, twin model\n" in second
    assert "| gptq | 1e+03 [1e+03, 1e+03] |" in second and "old" not in made
    assert filled(made, main, other) == made


def test_the_frontier_has_a_point_and_a_row_for_what_was_measured_on_both_models() -> None:
    runs = {
        f"w4a8/{model}/{method}/0": {**JUDGED, "mse": [error, error], "bytes": 500, "seconds": 1.0}
        for model in MODELS
        for method, error in (("ours", 0.001), ("stock", 0.02))
    } | {"w8a8/twin/ours/0": {**JUDGED, "bytes": 1000, "seconds": 1.0}}
    found = frontier.points(summarise(runs, dict.fromkeys(MODELS, JUDGED)), 1000)
    assert [(point.label, point.bits, point.error["twin"]) for point in found] == [
        ("**`--recipe w4a8`**", 4.0, 1.0),
        ("comfy-kitchen, `asym_w4a8_int8`", 4.0, 20.0),
    ]
    assert "| **`--recipe w4a8`** | 4.00 | 1 | 1 | 1 |" in frontier.table(found)
    drawing = frontier.chart(found)
    assert drawing.count("<circle") == 4 and "currentColor" not in drawing
    assert ElementTree.fromstring(drawing).tag.endswith("svg")
