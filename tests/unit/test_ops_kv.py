"""The int8 ring of keys and values: who is written, and what attention to it means."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qarvd.errors import ShapeError
from qarvd.ops import library

laws = settings(max_examples=40, deadline=None)
BATCH, HEADS, DIM = 2, 3, 16


@dataclass(frozen=True)
class Ring:
    """Codes and scales as `kv_append` takes them."""

    key_codes: Tensor
    key_scale: Tensor
    value_codes: Tensor
    value_scale: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.key_codes, self.key_scale, self.value_codes, self.value_scale

    @property
    def key(self) -> Tensor:
        return self.key_codes * self.key_scale.unsqueeze(-1)

    @property
    def value(self) -> Tensor:
        return self.value_codes * self.value_scale.unsqueeze(-1)


def ring_of(capacity: int, generator: torch.Generator) -> Ring:
    """A ring full of earlier tokens."""
    ring = Ring(
        *(
            empty
            for _ in range(2)
            for empty in (
                torch.zeros(BATCH, HEADS, capacity, DIM, dtype=torch.int8),
                torch.zeros(BATCH, HEADS, capacity),
            )
        )
    )
    library.kv_append(*tokens(capacity, generator), None, *ring.tensors, 0)
    return ring


def tokens(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    key, value = torch.randn(2, BATCH, HEADS, count, DIM, generator=generator)
    return key, value


@laws
@given(
    capacity=st.integers(1, 12),
    position=st.integers(0, 30),
    part=st.floats(0, 1),
    shifted=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_append_writes_the_named_slots_modulo_capacity_and_no_others(
    capacity: int, position: int, part: float, shifted: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    ring = ring_of(capacity, generator)
    before = [t.clone() for t in ring.tensors]
    count = round(part * capacity)
    key, value = tokens(count, generator)
    offset = torch.randn(BATCH, HEADS, DIM, generator=generator) if shifted else None
    library.kv_append(key, value, offset, *ring.tensors, position)

    slots = [(position + i) % capacity for i in range(count)]
    others = [i for i in range(capacity) if i not in slots]
    for old, new in zip(before, ring.tensors, strict=True):
        assert torch.equal(old[:, :, others], new[:, :, others])
    stored = key if offset is None else key - offset.unsqueeze(2)
    for x, held, step in ((stored, ring.key, ring.key_scale), (value, ring.value, ring.value_scale)):
        room = step[:, :, slots, None] * (0.5 + 2e-5)
        assert ((held[:, :, slots] - x).abs() <= room).all()


def test_more_tokens_than_slots_are_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    ring = ring_of(4, generator)
    with pytest.raises(ShapeError, match="5 tokens do not fit a ring of 4"):
        library.kv_append(*tokens(5, generator), None, *ring.tensors, 0)


@laws
@given(
    length=st.integers(1, 9),
    sink=st.integers(0, 3),
    new=st.integers(0, 3),
    shifted=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**32),
)
def test_attention_is_that_of_the_dequantized_ring_the_sink_and_the_newest_chunk(
    length: int, sink: int, new: int, shifted: bool, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    ring = ring_of(9, generator)
    offset = torch.randn(BATCH, HEADS, DIM, generator=generator) if shifted else None
    query = torch.randn(BATCH, HEADS, 5, DIM, generator=generator).to(dtype)
    pairs = [tuple(t.to(dtype) for t in tokens(count, generator)) if count else (None, None) for count in (sink, new)]
    came = library.kv_attention(query, *ring.tensors, length, offset, *pairs[0], *pairs[1])
    assert came.dtype == dtype and came.shape == query.shape

    wide = query.float()
    shift = torch.zeros(BATCH, HEADS, DIM) if offset is None else offset
    held_key, held_value = ring.key[:, :, :length], ring.value[:, :, :length]
    keys = [key.float() - shift.unsqueeze(2) for key, _ in pairs if key is not None]
    values = torch.cat([held_value, *(value.float() for _, value in pairs if value is not None)], dim=2)

    unrounded = F.scaled_dot_product_attention(wide, torch.cat([held_key, *keys], dim=2), values)
    assert (came.float() - unrounded).norm() <= 1e-2 * unrounded.norm()  # 8-bit queries

    scores = torch.cat([rounded(wide) @ held_key.mT, *(wide @ key.mT for key in keys)], dim=-1) / DIM**0.5
    due = (scores.softmax(-1) @ values).to(dtype)
    torch.testing.assert_close(came, due, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=2e-5)


def rounded(query: Tensor) -> Tensor:
    """What the ring's keys meet: 8-bit codes, a scale per token and head."""
    step = query.abs().amax(-1, keepdim=True) * (1 / 127)
    return (query * (1 / step)).round() * step


def attend(query: Tensor, key: Tensor, value: Tensor, offset: Tensor | None) -> Tensor:
    """Attention to `key` and `value` after a trip through the ring."""
    ring = ring_of(key.shape[2], torch.Generator().manual_seed(0))
    library.kv_append(key, value, offset, *ring.tensors, 0)
    return library.kv_attention(query, *ring.tensors, key.shape[2], offset, None, None, None, None)


@laws
@given(seed=st.integers(0, 2**32))
def test_softmax_does_not_see_the_key_offset(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, _ = tokens(5, generator)
    ring, pair = ring_of(4, generator), tokens(6, generator)
    offset = torch.randn(BATCH, HEADS, DIM, generator=generator)
    plain, shifted = (library.kv_attention(query, *ring.tensors, 0, o, None, None, *pair) for o in (None, offset))
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


@pytest.mark.parametrize("shifted", [False, True])
def test_torch_accepts_kv_append(shifted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    ring, offset = ring_of(5, generator), torch.randn(BATCH, HEADS, DIM) if shifted else None
    torch.library.opcheck(torch.ops.qarvd.kv_append.default, (*tokens(3, generator), offset, *ring.tensors, 4))


@pytest.mark.parametrize("parts", ["ring", "all"])
@pytest.mark.parametrize("layout", ["heads first", "tokens first"])
def test_torch_accepts_kv_attention(parts: str, layout: str) -> None:
    generator = torch.Generator().manual_seed(0)
    ring, (query, _) = ring_of(5, generator), tokens(3, generator)
    if layout == "tokens first":
        query = query.transpose(1, 2).contiguous().transpose(1, 2)
    rest = (
        (None,) * 5
        if parts == "ring"
        else (torch.randn(BATCH, HEADS, DIM), *tokens(2, generator), *tokens(4, generator))
    )
    torch.library.opcheck(torch.ops.qarvd.kv_attention.default, (query, *ring.tensors, 4, *rest))
