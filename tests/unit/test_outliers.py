"""The detector is the published one (tests/golden/README.md)."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from qarvd.quantize.outliers import Detection, column_norms, detect, published_split

GOLDEN = Path(__file__).parents[1] / "golden" / "outliers.safetensors"
with safe_open(GOLDEN, "pt") as _file:
    CASES = {case["name"]: case["expected"] for case in json.loads(_file.metadata()["cases"])}


def weight_of(case: str) -> torch.Tensor:
    with safe_open(GOLDEN, "pt") as file:
        return file.get_tensor(case)


def test_all_24_golden_weights_are_here() -> None:
    assert len(CASES) == 24


@pytest.mark.parametrize("align", [1, 32])
@pytest.mark.parametrize("case", CASES)
def test_detection_equals_the_published_one(case: str, align: int) -> None:
    expected = CASES[case][str(align)]
    found = detect(column_norms(weight_of(case)), align)
    assert found.count == expected["count"]
    assert found.threshold == expected["threshold"]
    assert found.channels == tuple(expected["channels"])


@pytest.mark.parametrize("case", [case for case in CASES if not case.endswith("257")])
def test_the_split_holds_the_published_outliers(case: str) -> None:
    assert published_split(weight_of(case)).outliers == tuple(CASES[case]["32"]["channels"])


@settings(max_examples=40, deadline=None)
@given(groups=st.integers(1, 6), large=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_a_split_is_aligned_and_at_most_half_rounded_down(groups: int, large: float, seed: int) -> None:
    channels = 32 * groups
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(8, channels, generator=generator) * 0.1
    weight[:, torch.rand(channels, generator=generator) < large] *= 50
    split = published_split(weight)
    assert split.n_outlier % 32 == 0
    assert split.n_outlier <= channels // 64 * 32


@pytest.mark.parametrize("value", [0.0, 0.01, 3.0])
def test_equal_columns_have_no_outliers(value: float) -> None:
    assert detect(torch.full((96,), value)) == Detection((), 0.0)


def test_linears_with_one_input_are_judged_by_their_common_norms() -> None:
    first, second = torch.randn(2, 16, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(column_norms(first, second), torch.cat([first, second]).norm(dim=0))
    second[:, 7] *= 100
    assert 7 in published_split(first, second).outliers
