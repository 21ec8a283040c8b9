"""The tables of docs/quality.md are made from the measurements, each between its marks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
    page = "# Text\n<!-- tables -->\nold\n<!-- end -->\nbetween\n<!-- untouched -->\nold\n<!-- end -->\nlast\n"
    made = filled(page, main, other)
    before, first, between, second, last = (
        made.replace("<!-- untouched -->", "<!-- tables -->")
        .replace("<!-- end -->", "<!-- tables -->")
        .split("<!-- tables -->")
    )
    assert (before, between, last) == ("# Text\n", "\nbetween\n", "\nlast\n")
    assert "| stock |  | 0.50x [0.50, 0.50] |  |  |\n" in first  # ours over it, of the twin at 4 bits
    assert "| a second scale |  |  | 0.33x [0.33, 0.33] | 1 |\n" in first
    assert "### w4a8, twin model\n" in first and "| stock | 500 [500, 500] |" in first
    assert second.count("###") == 1 and "### w4a8, untouched prompts, twin model\n" in second
    assert "| gptq | 1e+03 [1e+03, 1e+03] |" in second and "old" not in made
    assert filled(made, main, other) == made
