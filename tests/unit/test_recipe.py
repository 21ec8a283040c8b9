"""A recipe survives JSON, and refuses what it does not know."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qarvd.errors import SettingError
from qarvd.recipe import RECIPES, Recipe

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
    assert Recipe.from_json('{"weight_bits": 4}') == RECIPES["w4a8"]


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


def test_ready_made_recipes_differ_in_bits_only() -> None:
    assert {name: recipe.weight_bits for name, recipe in RECIPES.items()} == {"w8a8": 8, "w4a8": 4}
