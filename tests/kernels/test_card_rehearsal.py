"""What tests/gpu asks of a card is asked of the emulator here, so that a slip in those tests isn't a card owner's."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from test_cuda_ops import Prepared, dispatched, emulated  # noqa: F401

LINEAR = {"rows": 70, "outputs": 33, "groups": 3, "outliers": 1}
ATTENTION = {"rows": 5, "length": 70, "sink": 3, "new": 9, "head_dim": 64}
ASKED: dict[str, Mapping[str, Any]] = {
    "test_linears_equal_the_reference": LINEAR,
    "test_rings_equal_the_reference": {"tokens": 30, "position": 90, "head_dim": 64},
    "test_attention_errs_less_than_twice_plain_torch": ATTENTION,
    "test_a_misaligned_view_is_copied_and_loses_no_context": {},
}


@pytest.fixture(scope="module")
def tests() -> ModuleType:
    path = Path(__file__).parents[1] / "gpu" / "test_gpu.py"
    spec = importlib.util.spec_from_file_location("tests_of_a_card", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plain(test: Any) -> Callable[..., None]:
    """A test without hypothesis around it."""
    return test.hypothesis.inner_test if hasattr(test, "hypothesis") else test


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ASKED)
def test_the_emulator_passes(
    tests: ModuleType,
    dispatched: Prepared,  # noqa: F811
    name: str,
    bits: int,
    dtype: str,
) -> None:
    drawn = {"dtype": dtype, "seed": 0, **ASKED[name]} if ASKED[name] else {}
    plain(getattr(tests, name))(torch.device("cpu"), bits, **drawn)


def test_few_tokens_too(tests: ModuleType, dispatched: Prepared) -> None:  # noqa: F811
    tests.test_few_tokens_are_multiplied_as_they_are(torch.device("cpu"))
