"""What the codes of a ring, of queries and of offsets cost attention."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qarvd.ops import library, reference
from qarvd.ops.codecs import cache_codec_of

from .rings import BATCH, DIM, HEADS, dequantized, empty_ring, ring_of, tokens

laws = settings(max_examples=40, deadline=None)
meaning: Callable[..., Tensor] = reference.kv_attention


@laws
@given(head_dim=st.sampled_from([32, 128, 512]), bits=st.sampled_from([8, 4]), seed=st.integers(0, 2**32))
def test_two_bytes_of_a_query_code_give_its_exact_product(head_dim: int, bits: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, 1, 2, 40, head_dim, generator=generator).mul_(3).trunc_().unbind()
    ring = empty_ring(bits, 1, 2, 40, head_dim)
    library.kv_append(key, value, None, ring, 0)
    codes, step = reference.query_codes(query)
    assert codes.abs().max() <= 32512 and torch.equal(codes, codes.round())
    dots = (codes.double() @ cache_codec_of(bits).unpack(ring.key_codes).double().mT).float()
    weights = (dots * (step * ring.key_scale.unsqueeze(2)) * (1 / head_dim**0.5)).softmax(-1)
    assert torch.equal(meaning(query, ring, 40, None, None, None), weights @ dequantized(ring).value)


def attend(query: Tensor, key: Tensor, value: Tensor, offset: Tensor | None) -> Tensor:
    """Attention to `key` and `value` after a trip through the ring."""
    ring = ring_of(key.shape[2], torch.Generator().manual_seed(0))
    library.kv_append(key, value, offset, ring, 0)
    return library.kv_attention(query, ring, key.shape[2], offset, None, None)


def relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("loud", [False, True], ids=["even channels", "loud channels"])
@pytest.mark.parametrize("bits", [8, 4])
def test_integer_scores_cost_no_more_than_the_codes_themselves(bits: int, loud: bool) -> None:
    """Queries' 16 bits: next to nothing against the dequantized ring, and hardly more than its own error."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 2048, 128, generator=generator)
    query = 2 * query[:, :, :64]
    if loud:
        key[..., :3] *= 10
    ring = empty_ring(bits, 1, 2, 2048, 128)
    library.kv_append(key, value, None, ring, 0)
    dequantizing = F.scaled_dot_product_attention(query, *dequantized(ring))
    exact = F.scaled_dot_product_attention(query, key, value)
    for attention in (library.kv_attention, reference.kv_attention):
        actual = attention(query, ring, 2048, None, None, None)
        assert relative(actual, dequantizing) < 2e-4
        assert relative(actual, exact) <= 1.01 * relative(dequantizing, exact)


@laws
@given(seed=st.integers(0, 2**32))
def test_softmax_does_not_see_the_key_offset(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, _ = tokens(5, generator)
    ring, pair = ring_of(4, generator), tokens(6, generator)
    offset = torch.randn(BATCH, HEADS, DIM, generator=generator)
    plain, shifted = (library.kv_attention(query, ring, 0, o, None, pair) for o in (None, offset))
    torch.testing.assert_close(shifted, plain, rtol=1e-5, atol=1e-5)


@laws
@given(seed=st.integers(0, 2**32))
def test_taking_off_a_strong_common_mean_makes_attention_more_precise(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, _ = tokens(5, generator)
    key, value = tokens(12, generator)
    key += 20 * torch.randn(BATCH, HEADS, 1, DIM, generator=generator)
    exact = F.scaled_dot_product_attention(query, key, value)
    plain, shifted = ((attend(query, key, value, o) - exact).norm() for o in (None, key.mean(2)))
    assert shifted < plain / 2
    assert shifted <= 2e-2 * exact.norm()
