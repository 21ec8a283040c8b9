"""A recipe survives JSON, and refuses what it does not know."""

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qarvd.errors import SettingError
from qarvd.recipe import RECIPES, STOCK, Recipe

recipes = st.builds(
    Recipe,
    weight_bits=st.sampled_from([4, 8]),
    outliers=st.sampled_from(["published", "none"]),
    rounding=st.text(max_size=10),
    stream_chunks=st.none() | st.integers(1, 100_000),
    keep=st.lists(st.text(max_size=10), max_size=3).map(tuple),
)


@settings(max_examples=40, deadline=None)
@given(recipes)
def test_json_and_back_is_the_identity(recipe: Recipe) -> None:
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_what_is_left_out_has_its_default() -> None:
    assert Recipe.from_json("{}") == Recipe()
    assert Recipe.from_json('{"weight_bits": 4}') == Recipe(4)
    assert Recipe(4).group == Recipe(4).rotation == 0  # those of files from before there were any


@pytest.mark.parametrize("bits", [0, 2, 5, 16, -8, 8.0, "8", True, None, [8]])
def test_other_bits_are_refused(bits: object) -> None:
    with pytest.raises(SettingError, match="bit weights; 3, 4, 6, 8 are supported"):
        Recipe.from_json(json.dumps({"weight_bits": bits}))


@pytest.mark.parametrize("key", ["weight_bit", "seed", ""])
def test_unknown_keys_are_refused_by_name(key: str) -> None:
    with pytest.raises(SettingError, match=re.escape(repr(key))):
        Recipe.from_json(json.dumps({"weight_bits": 8, key: 1}))


@pytest.mark.parametrize(
    "values",
    [
        {"outliers": "all"},
        {"outliers": None},
        {"outliers": []},
        {"rounding": 3},
        {"rounding": []},
        {"keep": "blocks.0.ffn.0"},
        {"keep": 5},
        {"keep": None},
        {"keep": [1]},
        {"keep": [["blocks.0.ffn.0"]]},
    ],
    ids=str,
)
def test_values_of_another_kind_are_refused_in_a_sentence(values: dict) -> None:
    with pytest.raises(SettingError, match=r"\.$"):
        Recipe.from_json(json.dumps(values))


@pytest.mark.parametrize("text", ["", "{", "8", "[]", "null", '"w8a8"'])
def test_what_is_not_a_json_object_is_refused(text: str) -> None:
    with pytest.raises(SettingError):
        Recipe.from_json(text)


def test_ready_made_recipes_differ_in_bits_and_groups_only() -> None:
    assert {name: recipe.weight_bits for name, recipe in RECIPES.items()} == {
        "w8a8": 8,
        "w6a8": 6,
        "w4a8": 4,
        "w3a8": 3,
    }
    assert len({replace(recipe, weight_bits=8, group=0) for recipe in RECIPES.values()}) == 1


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("format", STOCK)
def test_what_is_brought_into_a_stock_format_is_what_it_holds(recipe: Recipe, format: str) -> None:
    made = recipe.in_format(format)
    assert (made.format, made.outliers, made.symmetric) == (format, "none", True)
    assert Recipe.from_json(made.to_json()) == made
    assert made.in_format(format) == made
    assert replace(made, rotation=16).rotation_of(48) == 16 and made.rotation_of(192) == 64


@pytest.mark.parametrize(
    ("format", "change", "why"),
    [
        ("asym_w4a8_int8", {"weight_bits": 8, "group": 0}, "asks for 8-bit weights"),
        ("asym_w4a8_int8", {"group": 0}, "asks for no groups"),
        ("asym_w4a8_int8", {"rotation": 0}, "asks for no rotation"),
        ("asym_w4a8_int8", {"rotation": 128}, "asks for a rotation by 128"),
        ("int8_tensorwise", {"outliers": "search"}, "asks for outliers"),
        ("int8_tensorwise", {"symmetric": False, "rotation": 32}, "asks for a rotation by 32, zero points"),
    ],
)
def test_what_a_stock_format_cannot_hold_is_named(format: str, change: dict, why: str) -> None:
    with pytest.raises(SettingError, match=f"^{format} holds symmetric weights of .* {why}"):
        replace(RECIPES["w4a8"].in_format(format), **change)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(SettingError, match="choose one of qarvd, asym_w4a8_int8, int8_tensorwise"):
        Recipe(format="gguf")
