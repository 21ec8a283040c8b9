"""comfy-kitchen's two calls mean what the reference means; its plain-torch path is the oracle here."""

from __future__ import annotations

from importlib import import_module

import cases
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qarvd.ops import kitchen


def stand_in(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype,
    residual: Tensor | float = 0.0,
    residual_scale: Tensor | float = 1.0,
) -> Tensor:
    """comfy-kitchen's `int8_linear` by its documentation: per-row 8-bit tokens, a scale for each output."""
    step = x.float().abs().amax(-1, keepdim=True).clamp_min(1e-12) / 127
    out = ((x.float() / step).round() @ weight.float().T) * step * scale
    return (residual + residual_scale * (out if bias is None else out + bias)).to(out_dtype)


def int8_linear():
    """The real one where it is installed."""
    try:
        return import_module("comfy_kitchen").int8_linear
    except ImportError:
        return stand_in


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("n_outlier", "zero"), [(0, False), (32, False), (32, True)])
def test_two_calls_are_a_dual_scale_linear(bits: int, n_outlier: int, zero: bool) -> None:
    weight = cases.weight_of(bits, 24, 128, n_outlier, zero, 0)
    x = cases.tokens_of(40, weight, "float32", 1)
    bias = torch.randn(24, generator=cases.draw(2))
    came = kitchen.prepare_with(int8_linear(), weight, bias)(x)
    due = F.linear(x, weight.dequantize(), bias)
    assert came.shape == due.shape
    assert (came - due).norm() < 0.02 * due.norm()


def test_it_refuses_other_devices() -> None:
    weight = cases.weight_of(8, 8, 64, 0, False, 0)
    assert kitchen.refuses(weight) == "the tensors are on cpu"
    reason = kitchen._trouble()
    assert reason is None or "comfy-kitchen" in reason
