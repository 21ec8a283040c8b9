"""What the attention kernel's result is off by, against the limits it was written for."""

from __future__ import annotations

from collections.abc import Callable

import cases
import pytest
import torch
import torch.nn.functional as F
from emulator.build import Library
from emulator.launcher import Emulator
from torch import Tensor

from qarvd.ops import reference
from qarvd.ops.codecs import codec_of
from qarvd.ops.cuda import ring_kernels
from qarvd.ops.values import KeyValue

LIMIT = 2e-3
"""Relative, against float32 attention to the dequantized ring; rounding to bfloat16 alone takes 1.7e-3 of it."""
WORSE = 1.2
"""Against the unquantized keys and values: at most this many times the error of dequantizing first, in float32."""


def off(actual: Tensor, expected: Tensor) -> float:
    return ((actual.float() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("loud", [False, True], ids=["even channels", "loud channels"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("bits", [8, 4])
def test_attention_keeps_its_limits(
    compiled_kernels: Callable[..., Library], bits: int, dtype: str, loud: bool
) -> None:
    generator, length, new = cases.draw(0), 1024, 256
    drawn = torch.randn(3, 1, 1, length + new, 128, generator=generator)
    drawn[1, ..., :3] *= 10 if loud else 1
    query, key, value = drawn.to(cases.DTYPES[dtype])
    query = 2 * query[:, :, :64]
    ring = cases.empty_ring(bits, 1, 1, length, 128)
    reference.kv_append(key[:, :, :length], value[:, :, :length], None, ring, 0)
    new = KeyValue(key[:, :, length:], value[:, :, length:])
    emulator = Emulator(compiled_kernels("plain"))
    actual = ring_kernels.kv_attention(emulator, cases.STREAM, query, ring, length, None, None, new)

    unpack = codec_of(bits).unpack
    kept = [unpack(codes) * scale.unsqueeze(-1) for codes, scale in (ring.tensors[:2], ring.tensors[2:])]
    keys, values = (
        torch.cat([old, x[:, :, length:].float()], dim=2) for old, x in zip(kept, (key, value), strict=True)
    )
    dequantized = F.scaled_dot_product_attention(query.float(), keys, values)
    exact = F.scaled_dot_product_attention(query.float(), key.float(), value.float())
    assert off(actual, dequantized) < LIMIT
    assert off(actual, exact) <= WORSE * off(dequantized, exact)
