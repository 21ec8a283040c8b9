"""Measured methods are read from JSON, and anything else is refused in a sentence."""

import json
import math

import pytest

from qarvd.errors import SettingError
from qarvd.report.methods import methods_chapter, read_methods
from qarvd.report.page import Table

ENTRY = {"method": "gptq", "model": "twin", "mse": 0.5, "mse_low": 0.4, "mse_high": 0.6, "bytes": 3_500_000, "more": []}


def test_methods_are_the_lists_and_all_else_is_ignored() -> None:
    content = {"w4a8": [ENTRY], "empty": [], "clips": 8, "note": {"a": 1}, "none": None}
    assert list(read_methods(json.dumps(content))) == ["w4a8"]


def test_methods_of_one_model_stand_together_with_the_least_error_first() -> None:
    entries = [
        {**ENTRY, "method": method, "model": model, "mse": mse}
        for method, model, mse in (("b", "twin", 0.9), ("c", "natural", 2), ("a", "twin", 0.1), ("d", "natural", 1.0))
    ]
    (table,) = methods_chapter(read_methods(json.dumps({"w4a8": entries}))).parts
    assert isinstance(table, Table) and [row["method"] for row in table.rows] == ["d", "c", "a", "b"]
    assert table.caption == "w4a8" and table.rows[0]["95 % interval"] == "0.4 to 0.6" and table.rows[0]["MB"] == 3.5


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "3", "[" * 100_000),
        *({"w4a8": [3]}, {"w4a8": [{}]}, {"w4a8": [ENTRY, {**ENTRY, "model": None}]}),
        *({"w4a8": [{**ENTRY, "mse": value}]} for value in (None, "0.1", True, math.nan, math.inf, [])),
        *({"w4a8": [{k: v for k, v in ENTRY.items() if k != key}]} for key in ENTRY if key != "more"),
    ],
    ids=str,
)
def test_measurements_of_another_form_are_refused_in_a_sentence(content: object) -> None:
    with pytest.raises(SettingError) as refused:
        read_methods(content if isinstance(content, str) else json.dumps(content))
    assert str(refused.value).endswith(".") and "\n" not in str(refused.value)
