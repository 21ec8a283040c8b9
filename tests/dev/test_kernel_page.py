"""The tables of docs/kernels.md are those of docs/kernels.json, which is of the source that is shipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kernel_page import MARKED, PAGE, TABLES, filled
from roofline import RECORD

from qarvd.ops.cuda import source


def test_the_page_shows_what_was_counted_and_modelled() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert sorted(name for _, name, _, _ in MARKED.findall(page)) == sorted(TABLES)
    assert filled(page) == page, "run python benchmarks/kernel_page.py"


def test_what_was_counted_is_of_the_source_that_is_shipped() -> None:
    assert json.loads(RECORD.read_text())["source"] == source.read().hash, (
        "run python benchmarks/sass.py --peer FOLDER --json docs/kernels.json, and then benchmarks/kernel_page.py"
    )


@pytest.mark.parametrize("table", sorted(TABLES))
def test_every_table_follows_the_record(table: str, tmp_path: Path) -> None:
    """A loop that takes longer shows: in its own table, and in the model."""
    figures = json.loads(RECORD.read_text())
    for made in (*figures["qarvd"], *figures["comfy-kitchen"]):
        for turn in made["turns"]:
            turn["usual"] += 5000
    slower = tmp_path / "kernels.json"
    slower.write_text(json.dumps(figures))
    page = f"<!-- table {table} -->\n<!-- end -->\n"
    assert filled(page) != filled(page, slower)
