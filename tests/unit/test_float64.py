"""Devices without float64 numbers run everything; what needs such numbers is computed on the CPU, to the same bits."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from qarvd.float64 import float64_device, to_float64

from . import without_float64
from .without_float64 import CASES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The results of CASES on such a device, by case and name; it refuses whatever the real ones refuse."""
    path = tmp_path_factory.mktemp("there") / "results.safetensors"
    command = [sys.executable, without_float64.__file__, str(path)]
    settings = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return load_file(path)


def here(case: str) -> dict[str, Tensor]:
    """The same on a CPU, with the attention that torch has for all devices."""
    with sdpa_kernel(SDPBackend.MATH):
        return CASES[case](torch.device("cpu"))


@pytest.mark.parametrize("case", ["positions", "statistics"])
def test_positions_and_sums_are_the_same_to_the_bit(there: dict[str, Tensor], case: str) -> None:
    for name, expected in here(case).items():
        assert torch.equal(there[f"{case}/{name}"], expected), name


def test_a_stream_is_the_same_to_the_bit_and_with_a_quantized_cache_nearly(there: dict[str, Tensor]) -> None:
    expected = here("streams")
    assert torch.equal(there["streams/16 bits"], expected["16 bits"])
    for bits in ("8 bits", "4 bits"):
        assert distance(there[f"streams/{bits}"], expected[bits]) < 1e-4


def test_a_model_quantized_without_data_has_the_same_bytes_and_streams(there: dict[str, Tensor]) -> None:
    """Its activations are not quantized there."""
    expected = here("without_data")
    latents = expected.pop("latents")
    for name, tensor in expected.items():
        assert torch.equal(*(t.flatten().view(torch.uint8) for t in (there[f"without_data/{name}"], tensor))), name
    assert distance(there["without_data/latents"], latents) < 0.01


def test_calibration_and_a_bit_budget_come_out_alike(there: dict[str, Tensor]) -> None:
    expected = here("calibrated")
    for name in ("effects", "call effects"):
        assert distance(there[f"calibrated/{name}"], expected[name]) < 0.05
    assert torch.equal(there["calibrated/bits"], expected["bits"])
    assert distance(there["calibrated/latents"], expected["latents"]) < 0.01


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def test_float64_stays_where_it_is_known_to_be() -> None:
    for kind, expected in (("cpu", "cpu"), ("cuda", "cuda"), ("mps", "cpu"), ("xpu", "cpu"), ("meta", "meta")):
        assert float64_device(torch.device(kind, 0)).type == expected
    x = torch.tensor([1.5], dtype=torch.bfloat16)
    assert to_float64(x).dtype == torch.float64 and to_float64(x).item() == 1.5


def test_a_merged_weight_of_groups_is_the_same_there(there: dict[str, Tensor]) -> None:
    assert distance(there["merged/weight"], here("merged")["weight"]) < 1e-6
