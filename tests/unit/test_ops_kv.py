"""The ring of keys and values in 8 and 4 bits: who is written, and what attention to it means."""

from collections.abc import Callable
from dataclasses import dataclass
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qarvd.errors import ShapeError
from qarvd.ops import cpu_attention, library, reference
from qarvd.ops.ring import codec_of_ring

laws = settings(max_examples=40, deadline=None)
widths = st.sampled_from([8, 4])
BATCH, HEADS, DIM = 2, 3, 32
meaning: Callable[..., Tensor] = reference.kv_attention


@dataclass(frozen=True)
class Ring:
    """Codes and scales as `kv_append` takes them."""

    bits: int
    key_codes: Tensor
    key_scale: Tensor
    value_codes: Tensor
    value_scale: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.key_codes, self.key_scale, self.value_codes, self.value_scale

    @property
    def key(self) -> Tensor:
        return codec_of_ring(self.bits).unpack(self.key_codes) * self.key_scale.unsqueeze(-1)

    @property
    def value(self) -> Tensor:
        return codec_of_ring(self.bits).unpack(self.value_codes) * self.value_scale.unsqueeze(-1)


def empty_ring(bits: int, batch: int, heads: int, capacity: int, head_dim: int) -> Ring:
    room, stored = (batch, heads, capacity), codec_of_ring(bits).stored
    codes = [torch.zeros(*room, head_dim * bits // 8, dtype=stored) for _ in range(2)]
    scales = [torch.zeros(room) for _ in range(2)]
    return Ring(bits, codes[0], scales[0], codes[1], scales[1])


def ring_of(capacity: int, generator: torch.Generator, bits: int = 8) -> Ring:
    """A ring full of earlier tokens."""
    ring = empty_ring(bits, BATCH, HEADS, capacity, DIM)
    library.kv_append(*tokens(capacity, generator), None, *ring.tensors, 0, bits)
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
    bits=widths,
    seed=st.integers(0, 2**32),
)
def test_append_writes_the_named_slots_modulo_capacity_and_no_others(
    capacity: int, position: int, part: float, shifted: bool, bits: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    ring = ring_of(capacity, generator, bits)
    before = [t.clone() for t in ring.tensors]
    count = round(part * capacity)
    key, value = tokens(count, generator)
    offset = torch.randn(BATCH, HEADS, DIM, generator=generator) if shifted else None
    library.kv_append(key, value, offset, *ring.tensors, position, bits)

    slots = [(position + i) % capacity for i in range(count)]
    others = [i for i in range(capacity) if i not in slots]
    for old, new in zip(before, ring.tensors, strict=True):
        assert torch.equal(old[:, :, others], new[:, :, others])
    stored = key if offset is None else key - offset.unsqueeze(2)
    for x, held, step in ((stored, ring.key, ring.key_scale), (value, ring.value, ring.value_scale)):
        room = step[:, :, slots, None] * (0.5 + 2e-5)
        assert ((held[:, :, slots] - x).abs() <= room).all()


@laws
@given(
    tokens_each=st.lists(st.integers(0, 1100), min_size=1, max_size=3),
    spare=st.integers(0, 50),
    position=st.integers(0, 3000),
    bits=widths,
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 2**32),
)
def test_the_cpu_writes_what_the_reference_writes(
    tokens_each: list[int], spare: int, position: int, bits: int, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    capacity = max(tokens_each) + spare
    offset = torch.randn(1, 2, DIM, generator=generator)
    rings = [empty_ring(bits, 1, 2, capacity, DIM) for _ in range(2)]
    for count in tokens_each:
        key, value = torch.randn(2, 1, count, 2, DIM, generator=generator).to(dtype).transpose(2, 3)
        for append, ring in zip((library.kv_append, reference.kv_append), rings, strict=True):
            append(key, value, offset, *ring.tensors, position, bits)
        position += count
    for came, due in zip(rings[0].tensors, rings[1].tensors, strict=True):
        assert torch.equal(came, due)


@laws
@given(
    length=st.integers(1, 9),
    sink=st.integers(0, 3),
    new=st.integers(0, 3),
    shifted=st.booleans(),
    bits=widths,
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**32),
)
def test_attention_is_that_of_the_dequantized_ring_the_sink_and_the_newest_chunk(
    length: int, sink: int, new: int, shifted: bool, bits: int, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    ring = ring_of(9, generator, bits)
    offset = torch.randn(BATCH, HEADS, DIM, generator=generator) if shifted else None
    query = torch.randn(BATCH, HEADS, 5, DIM, generator=generator).to(dtype)
    pairs = [tuple(t.to(dtype) for t in tokens(count, generator)) if count else (None, None) for count in (sink, new)]
    came = meaning(query, *ring.tensors, length, offset, *pairs[0], *pairs[1], bits)
    assert came.dtype == dtype and came.shape == query.shape

    wide = query.float()
    shift = torch.zeros(BATCH, HEADS, DIM) if offset is None else offset
    held_key, held_value = ring.key[:, :, :length], ring.value[:, :, :length]
    keys = [key.float() - shift.unsqueeze(2) for key, _ in pairs if key is not None]
    values = torch.cat([held_value, *(value.float() for _, value in pairs if value is not None)], dim=2)

    unrounded = F.scaled_dot_product_attention(wide, torch.cat([held_key, *keys], dim=2), values)
    assert dtype == torch.bfloat16 or (came - unrounded).norm() <= 3e-4 * unrounded.norm()  # 16-bit queries

    scores = torch.cat([rounded(wide) @ held_key.mT, *(wide @ key.mT for key in keys)], dim=-1) / DIM**0.5
    due = (scores.softmax(-1) @ values).to(dtype)
    torch.testing.assert_close(came, due, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=2e-5)


def rounded(query: Tensor) -> Tensor:
    """What the ring's keys meet: 16-bit codes, a scale per token and head."""
    step = query.abs().amax(-1, keepdim=True) * (1 / 32512)
    return (query * (1 / step)).round() * step


@laws
@given(
    sizes=st.tuples(*(st.integers(0, most) for most in (70, 90, 300, 40, 40))),
    places=st.tuples(st.integers(1, 3), st.integers(1, 5)),
    head_dim=st.sampled_from([32, 64, 96, 128]),
    position=st.integers(0, 500),
    shifted=st.booleans(),
    bits=widths,
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    block=st.sampled_from([16, 100, cpu_attention.BLOCK]),
    scratch=st.sampled_from([1, 2 * 100 * 64, cpu_attention.SCRATCH]),
    seed=st.integers(0, 2**32),
)
def test_the_cpu_attends_in_blocks_as_the_reference_does_at_once(
    sizes: tuple[int, int, int, int, int],
    places: tuple[int, int],
    head_dim: int,
    position: int,
    shifted: bool,
    bits: int,
    dtype: torch.dtype,
    block: int,
    scratch: int,
    seed: int,
) -> None:
    """Within 1e-5 in float32; otherwise the same rounded to 16 bits, but where float32 hits a tie."""
    generator = torch.Generator().manual_seed(seed)
    queries, length, spare, sink, new = sizes

    def draw(count: int) -> Tensor:
        return torch.randn(places[0], count, places[1], head_dim, generator=generator).transpose(1, 2)

    ring = empty_ring(bits, *places, length + spare, head_dim)
    library.kv_append(draw(length + spare), draw(length + spare), None, *ring.tensors, position, bits)
    offset = torch.randn(*places, head_dim, generator=generator) if shifted else None
    outside = [x for n in (sink, new) for x in ((draw(n).to(dtype), draw(n).to(dtype)) if n else (None, None))]
    arguments = (draw(queries).to(dtype), *ring.tensors, length, offset, *outside, bits)
    with patch.multiple(cpu_attention, BLOCK=block, SCRATCH=scratch):
        came = library.kv_attention(*arguments)
    due = meaning(*arguments)
    assert came.dtype == dtype and came.is_contiguous()
    step = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    torch.testing.assert_close(came, due, rtol=step, atol=1e-5)


@laws
@given(head_dim=st.sampled_from([32, 128, 512]), bits=widths, seed=st.integers(0, 2**32))
def test_two_bytes_of_a_query_code_give_its_exact_product(head_dim: int, bits: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, 1, 2, 40, head_dim, generator=generator).mul_(3).trunc_().unbind()
    ring = empty_ring(bits, 1, 2, 40, head_dim)
    library.kv_append(key, value, None, *ring.tensors, 0, bits)
    codes, step = reference.query_codes(query)
    assert codes.abs().max() <= 32512 and torch.equal(codes, codes.round())
    dots = (codes.double() @ codec_of_ring(bits).unpack(ring.key_codes).double().mT).float()
    weights = (dots * (step * ring.key_scale.unsqueeze(2)) * (1 / head_dim**0.5)).softmax(-1)
    assert torch.equal(meaning(query, *ring.tensors, 40, *(None,) * 5, bits), weights @ ring.value)


def test_attention_to_nothing_is_zero() -> None:
    ring, query = empty_ring(8, 1, 2, 5, DIM), torch.randn(1, 2, 3, DIM)
    for attention in (library.kv_attention, reference.kv_attention):
        assert not attention(query, *ring.tensors, 0, None, None, None, None, None).any()


def attend(query: Tensor, key: Tensor, value: Tensor, offset: Tensor | None) -> Tensor:
    """Attention to `key` and `value` after a trip through the ring."""
    ring = ring_of(key.shape[2], torch.Generator().manual_seed(0))
    library.kv_append(key, value, offset, *ring.tensors, 0)
    return library.kv_attention(query, *ring.tensors, key.shape[2], offset, None, None, None, None)


def relative(came: Tensor, due: Tensor) -> float:
    return ((came - due).norm() / due.norm()).item()


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
    library.kv_append(key, value, None, *ring.tensors, 0, bits)
    dequantized = F.scaled_dot_product_attention(query, ring.key, ring.value)
    exact = F.scaled_dot_product_attention(query, key, value)
    for attention in (library.kv_attention, reference.kv_attention):
        came = attention(query, *ring.tensors, 2048, None, None, None, None, None, bits)
        assert relative(came, dequantized) < 2e-4
        assert relative(came, exact) <= 1.01 * relative(dequantized, exact)


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


@pytest.mark.parametrize(("shifted", "bits"), [(False, 8), (True, 4)])
def test_torch_accepts_kv_append(shifted: bool, bits: int) -> None:
    generator = torch.Generator().manual_seed(0)
    ring, offset = ring_of(5, generator, bits), torch.randn(BATCH, HEADS, DIM) if shifted else None
    torch.library.opcheck(torch.ops.qarvd.kv_append.default, (*tokens(3, generator), offset, *ring.tensors, 4, bits))


@pytest.mark.parametrize("parts", ["ring", "all"])
@pytest.mark.parametrize(("layout", "bits"), [("heads first", 8), ("tokens first", 4)])
def test_torch_accepts_kv_attention(parts: str, layout: str, bits: int) -> None:
    generator = torch.Generator().manual_seed(0)
    ring, (query, _) = ring_of(5, generator, bits), tokens(3, generator)
    if layout == "tokens first":
        query = query.transpose(1, 2).contiguous().transpose(1, 2)
    rest = (
        (None,) * 5
        if parts == "ring"
        else (torch.randn(BATCH, HEADS, DIM), *tokens(2, generator), *tokens(4, generator))
    )
    torch.library.opcheck(torch.ops.qarvd.kv_attention.default, (query, *ring.tensors, 4, *rest, bits))


def misfits(bits: int) -> dict[str, tuple[str, list[object]]]:
    """Calls of kv_attention that nobody can run, with what is said of each."""
    ring, (key, value) = empty_ring(bits, 1, 2, 5, 64), torch.zeros(2, 1, 2, 3, 64)
    good = [torch.zeros(1, 2, 4, 64), *ring.tensors, 5, torch.zeros(1, 2, 64), key, value, key, value, bits]

    def but(index: int, value: object) -> list[object]:
        return [*good[:index], value, *good[index + 1 :]]

    return {
        "head dim": ("key codes have shape", but(0, torch.zeros(1, 2, 4, 32))),
        "heads": (r"key codes have shape \(1, 2, 5, \d+\); expected \(1, 3", but(0, torch.zeros(1, 3, 4, 64))),
        "axes": (r"Queries have shape \(2, 4, 64\)", but(0, torch.zeros(2, 4, 64))),
        "dtype": ("Queries came as torch.float64", but(0, torch.zeros(1, 2, 4, 64, dtype=torch.float64))),
        "codes": ("key codes came as torch.int16", but(1, ring.key_codes.to(torch.int16))),
        "scales": ("value scales have shape", but(4, torch.zeros(1, 2, 4))),
        "length": ("first 6 slots was asked of a ring of 5", but(5, 6)),
        "negative length": ("first -1 slots", but(5, -1)),
        "offset": ("Key offsets have shape", but(6, torch.zeros(1, 2, 32))),
        "half a sink": ("sink needs both keys and values", but(8, None)),
        "half a chunk": ("newest chunk needs both", but(9, None)),
        "values of another length": ("newest chunk's values have shape", but(10, torch.zeros(1, 2, 2, 64))),
        "bits": (r"kept in \[4, 8\] bits; 3 came", but(11, 3)),
        "wide heads": ("at most 512", but(0, torch.zeros(1, 2, 4, 1024))),
    }


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("attention", [library.kv_attention, reference.kv_attention], ids=["cpu", "reference"])
@pytest.mark.parametrize("what", list(misfits(8)))
def test_attention_that_does_not_fit_is_refused_in_a_sentence(
    what: str, attention: Callable[..., Tensor], bits: int
) -> None:
    message, arguments = misfits(bits)[what]
    with pytest.raises(ShapeError, match=message):
        attention(*arguments)


@pytest.mark.parametrize("append", [library.kv_append, reference.kv_append], ids=["cpu", "reference"])
def test_tokens_that_do_not_fit_are_refused_in_a_sentence(append: Callable[..., None]) -> None:
    ring, (key, value) = empty_ring(8, 1, 2, 4, 48), torch.zeros(2, 1, 2, 5, 48)
    few, less = key[:, :, :3], value[:, :, :2]
    with pytest.raises(ShapeError, match="5 tokens do not fit a ring of 4"):
        append(key, value, None, *ring.tensors, 0)
    with pytest.raises(ShapeError, match="Values have shape"):
        append(few, less, None, *ring.tensors, 0)
    with pytest.raises(ShapeError, match="position -1"):
        append(few, few, None, *ring.tensors, -1)
    with pytest.raises(ShapeError, match="multiple of 32 channels; 48 came"):
        append(few, few, None, *ring.tensors, 0, 4)
