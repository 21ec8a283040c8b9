"""The tables of docs/kernels.md are made from docs/kernels.json, each between its marks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kernel_page import TABLES, filled
from roofline import RECORD

from qarvd.ops.cuda import source


def marked(table: str) -> str:
    """A page of nothing but this table's place."""
    return f"<!-- table {table} -->\nold\n<!-- end -->\n"


def test_each_mark_gets_its_table_and_the_text_around_stays() -> None:
    made = filled(f"# Text\n{marked('sm_86')}between\n{marked('clip')}last\n")
    assert made == f"# Text\n{filled(marked('sm_86'))}between\n{filled(marked('clip'))}last\n"
    assert "old" not in made and filled(made) == made
    with pytest.raises(KeyError, match="sm_61"):
        filled(marked("sm_61"))


def test_a_table_of_counts_shows_the_main_loops_of_its_architecture(tmp_path: Path) -> None:
    turn = {
        **{"kind": "keys", "every": 700, "usual": 500, "tensor": 64, "ldsm": 32, "ldgsts": 16, "lds": 8},
        **{"tensor_cycles": 436.0, "shared_cycles": 96, "special_cycles": 24},
    }
    made = {"registers": 168, "stack": 0, "shared": 49152, "blocks": 2, "turns": [turn]}
    kernels = [
        {"name": "qarvd_linear_large", "architecture": "sm_86", **made},
        {"name": "qarvd_linear_large", "architecture": "sm_75", **made, "registers": 255},
        {"name": "qarvd_a_kernel_that_no_table_shows", "architecture": "sm_86", **made},
    ]
    record = tmp_path / "kernels.json"
    record.write_text(json.dumps({"qarvd": kernels, "comfy-kitchen": []}))
    _, _, *rows = [line.split(" | ") for line in filled(marked("sm_86"), record).splitlines() if line.startswith("|")]
    (row,) = ([cell.strip(" |") for cell in cells] for cells in rows)
    assert row[:6] == ["linear_large", "168", "0", "49152", "2", "keys"]
    assert row[6:8] == ["700 / 500", "64 / 32 / 16 / 8 / 380"]  # 380 are neither of the others
    assert row[8:] == ["436", "96", "24", "1.00"]  # (500 - 64) in 436 cycles


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
    assert filled(marked(table)) != filled(marked(table), slower)
