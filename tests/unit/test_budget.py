"""A bit budget is kept, and no choice of that size has less error."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qarvd.errors import SettingError
from qarvd.quantize.budget import Option, Target, allocate, parse_target

errors = st.tuples(st.floats(1e-6, 1), st.floats(1e-8, 0.1)).map(lambda pair: (max(pair), min(pair)))
groups = st.dictionaries(st.text("abc", min_size=1), st.tuples(st.integers(1, 9), errors), min_size=1, max_size=6)


def options_of(drawn: dict[str, tuple[int, tuple[float, float]]]) -> dict[str, dict[str, Option]]:
    return {
        key: {"4": Option(4 * size, four), "8": Option(8 * size, eight), "16": Option(16 * size, 0.0)}
        for key, (size, (four, eight)) in drawn.items()
    }


@given(groups, st.floats(1.0, 4.2))
def test_the_size_is_kept_and_no_choice_of_it_is_better(
    drawn: dict[str, tuple[int, tuple[float, float]]], times: float
) -> None:
    options = options_of(drawn)
    capacity = times * sum(choices["4"].nbytes for choices in options.values())
    found = allocate(options, capacity)
    assert found.nbytes == sum(options[key][bits].nbytes for key, bits in found.bits.items()) <= capacity
    assert found.error == pytest.approx(sum(options[key][bits].error for key, bits in found.bits.items()))
    best = min(
        sum(options[key][bits].error for key, bits in zip(options, choice, strict=True))
        for choice in itertools.product(("4", "8", "16"), repeat=len(options))
        if sum(options[key][bits].nbytes for key, bits in zip(options, choice, strict=True)) <= capacity
    )
    assert found.error == pytest.approx(best, rel=1e-9, abs=1e-12)


@given(groups)
def test_everything_stays_in_16_bits_where_there_is_room(drawn: dict[str, tuple[int, tuple[float, float]]]) -> None:
    options = options_of(drawn)
    found = allocate(options, sum(choices["16"].nbytes for choices in options.values()))
    assert found.error == 0


def test_bits_go_where_they_save_most_error_per_byte() -> None:
    sensitive = {"4": Option(10, 1.0), "8": Option(20, 0.01), "16": Option(40, 0.0)}
    dull = {"4": Option(10, 0.1), "8": Option(20, 0.01), "16": Option(40, 0.0)}
    assert allocate({"dull": dull, "sensitive": sensitive}, 30).bits == {"dull": "4", "sensitive": "8"}


def test_a_cheap_upgrade_does_not_stand_in_the_way_of_a_better_one() -> None:
    cheap = {"4": Option(10, 1.0), "8": Option(11, 0.5)}  # saves most for a byte
    better = {"4": Option(40, 9.0), "8": Option(80, 1.0)}
    assert allocate({"cheap": cheap, "better": better}, 90).bits == {"cheap": "4", "better": "8"}


def test_a_size_that_cannot_be_met_is_refused() -> None:
    with pytest.raises(SettingError, match="take 2000000 bytes, and there are 1000000"):
        allocate({"a": {"4": Option(2_000_000, 1.0), "8": Option(4_000_000, 0.0)}}, 1e6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_error_that_is_not_finite_names_its_group(bad: float) -> None:
    fine = {"4": Option(10, 1.0), "16": Option(40, 0.0)}
    with pytest.raises(SettingError, match=r"What blocks\.1\.ffn\.0 does"):
        allocate({"blocks.0.ffn.0": fine, "blocks.1.ffn.0": {"4": Option(10, bad), "16": Option(40, 0.0)}}, 80)


@pytest.mark.parametrize(
    ("text", "target"),
    [("900MB", Target(bytes=9e8)), ("1.5 gb", Target(bytes=1.5e9)), ("4.5 bits", Target(bits=4.5))],
)
def test_targets_are_read(text: str, target: Target) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize("text", ["", "900", "0 MB", "-1GB", "many bits", "4.5.1 bits", "1e9 MB"])
def test_other_targets_are_refused(text: str) -> None:
    with pytest.raises(SettingError, match="target"):
        parse_target(text)
