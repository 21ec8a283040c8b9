"""comfy-kitchen's `int8_linear` means what the reference means; its own plain-torch code runs here, from PyPI."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import cases
import pytest
import torch
import torch.nn.functional as F
from comfy_kitchen import int8_linear
from tiny.weights import KINDS
from torch import Tensor

from qarvd.ops.backends import kitchen
from qarvd.ops.codecs import Codec


def without_residual(int8_linear: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """As comfy-kitchen before 0.2.36 has it."""

    def older(
        x: Tensor,
        weight: Tensor,
        weight_scale: Tensor,
        bias: Tensor | None = None,
        out_dtype: torch.dtype | None = None,
    ) -> Tensor:
        return int8_linear(x, weight, weight_scale, bias, out_dtype)

    return older


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("codec", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(("n_outlier", "zero", "biased"), [(0, False, True), (32, False, False), (32, True, True)])
def test_its_calls_are_a_dual_scale_linear(
    older: bool, dtype: str, codec: Codec, n_outlier: int, zero: bool, biased: bool
) -> None:
    weight = cases.weight_of(codec, 24, 128, n_outlier, zero, 0, rotation=2 * n_outlier)
    x = cases.tokens_of(40, weight, dtype, 1)
    bias = torch.randn(24, generator=cases.draw(2)) if biased else None
    call = without_residual(int8_linear) if older else int8_linear
    actual = kitchen.prepare_with(call, weight).run(x.view(2, 20, 128), bias)
    expected = F.linear(x.float(), weight.dequantize(), bias).view(2, 20, 24)
    assert actual.shape == expected.shape and actual.dtype == x.dtype
    assert (actual.float() - expected).norm() < 0.02 * expected.norm()


def test_an_older_one_is_found_out_by_a_small_product() -> None:
    cpu = torch.device("cpu")
    assert not kitchen.adds_residual(without_residual(int8_linear), cpu)
    assert kitchen.adds_residual(int8_linear, cpu)


def test_one_that_takes_a_residual_and_ignores_it_is_not_trusted() -> None:
    ignoring = without_residual(int8_linear)
    assert not kitchen.adds_residual(lambda *args, residual, residual_scale: ignoring(*args), torch.device("cpu"))


def test_it_refuses_other_devices() -> None:
    assert kitchen.refuses(cases.weight_of(KINDS["int8"], 8, 64, 0, False, 0)) == "the tensors are on cpu"


def backend(reason: str | None = None, disabled: bool = False, able: bool = True) -> dict[str, Any]:
    capabilities = ["int8_linear"] if able else []
    return {
        "available": reason is None,
        "disabled": disabled,
        "unavailable_reason": reason,
        "capabilities": capabilities,
    }


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ({"cuda": backend(), "hip": backend("no AMD card")}, None),
        ({"cuda": backend("built without CUDA"), "hip": backend()}, None),  # an AMD card
        ({"cuda": backend("the driver is too old"), "eager": backend()}, "cuda: the driver is too old"),
        ({"cuda": backend(disabled=True)}, "cuda: it is switched off"),
        ({"cuda": backend(able=False)}, "cuda: it has no int8_linear"),
    ],
)
def test_its_fast_backends_for_both_makes_of_cards_count(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, Any], reason: str | None
) -> None:
    package = SimpleNamespace(registry=SimpleNamespace(list_backends=lambda: found))
    monkeypatch.setattr(kitchen, "import_module", lambda name: package)
    kitchen._trouble.cache_clear()
    try:
        actual = kitchen._trouble()
    finally:
        kitchen._trouble.cache_clear()
    assert actual is None if reason is None else reason in str(actual)


def test_the_real_package_is_understood() -> None:
    """Without a card it refuses, for a reason that it tells itself."""
    if not torch.cuda.is_available():
        kitchen._trouble.cache_clear()
        assert str(kitchen._trouble()).startswith("comfy-kitchen can't use the card: ")
