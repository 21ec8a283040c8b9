"""Weights alone quantized: the product with what they stand for, and nothing to fetch or lay out at a call."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny.weights import KINDS, weight_with
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qarvd.ops.backends import cuda, registry
from qarvd.ops.backends.cuda import CUDA, FEW_TOKENS
from qarvd.ops.backends.weight_only import WEIGHT_ONLY
from qarvd.ops.codecs import CODECS, Codec
from qarvd.ops.linear import QuantizedLinear
from qarvd.ops.split import ChannelSplit
from qarvd.ops.weight import QuantizedWeight

every_codec = pytest.mark.parametrize("codec", KINDS.values(), ids=KINDS)


def weight_of(codec: Codec, outliers: int, zero: bool = True) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(0)
    split = ChannelSplit.of(128, range(1, 1 + 3 * outliers, 3), rotation=outliers)
    scale = torch.rand(24, 2, generator=generator) + 0.01
    zeros = torch.randint(-3, 4, (24, 2), dtype=torch.int8, generator=generator) if zero else None
    return weight_with(codec, split, scale, zeros, generator)


def tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, 128, generator=torch.Generator().manual_seed(1))


@every_codec
@pytest.mark.parametrize(("outliers", "zero", "biased"), [(0, False, True), (32, True, False), (32, False, True)])
def test_it_is_the_product_with_the_dequantized_weight(codec: Codec, outliers: int, zero: bool, biased: bool) -> None:
    weight, x = weight_of(codec, outliers, zero), tokens(2, 3)
    bias = torch.arange(24.0) if biased else None
    expected = F.linear(x, weight.dequantize(), bias)
    torch.testing.assert_close(WEIGHT_ONLY.prepare(weight).run(x, bias), expected, rtol=1e-5, atol=1e-3)
    half = WEIGHT_ONLY.prepare(weight).run(x.bfloat16(), bias)
    assert half.dtype == torch.bfloat16 and (half - expected).norm() < 2e-2 * expected.norm()


class Devices(TorchDispatchMode):
    """Records where all tensors lie that operations read."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen |= {x.device.type for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        return func(*args, **(kwargs or {}))


@every_codec
def test_a_call_copies_nothing_from_the_host(codec: Codec) -> None:
    """A CUDA graph could not be captured otherwise."""
    run = WEIGHT_ONLY.prepare(weight_of(codec, 32).to("meta")).run
    x = tokens(4).to("meta")
    with Devices() as devices:
        run(x, None)
    assert devices.seen == {"meta"}


def test_few_tokens_are_multiplied_as_they_are_on_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "is_traced", lambda weight: True)  # no card to load kernels for
    monkeypatch.setattr(registry, "BACKENDS", (replace(CUDA, refuses=lambda weight: None),))
    weight = weight_of(CODECS["int8"], 32)
    layer = QuantizedLinear(weight, None)
    for count in (FEW_TOKENS, FEW_TOKENS + 1):
        exact = F.linear(tokens(count), weight.dequantize())
        error = (layer(tokens(count)) - exact).norm() / exact.norm()
        assert (error < 1e-5) == (count == FEW_TOKENS)
        assert isinstance(layer.share_input(tokens(count), [layer]), Tensor) == (count == FEW_TOKENS)
