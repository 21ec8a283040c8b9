"""What attention to a ring in 8 and 4 bits means, and that a CPU computes it block by block."""

from collections.abc import Callable
from types import ModuleType
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qarvd.errors import ShapeError
from qarvd.ops import library, reference
from qarvd.ops.cpu import ops as cpu
from qarvd.ops.cuda import ops as cuda
from qarvd.ops.values import KeyValue

from .rings import BATCH, DIM, HEADS, dequantized, empty_ring, ring_of, tokens

laws = settings(max_examples=40, deadline=None)
widths = st.sampled_from([8, 4])
meaning: Callable[..., Tensor] = reference.kv_attention


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
    pairs = [KeyValue(*(t.to(dtype) for t in tokens(n, generator))) if n else None for n in (sink, new)]
    actual = meaning(query, ring, length, offset, *pairs)
    assert actual.dtype == dtype and actual.shape == query.shape

    wide = query.float()
    shift = torch.zeros(BATCH, HEADS, DIM) if offset is None else offset
    held_key, held_value = (x[:, :, :length] for x in dequantized(ring))
    keys = [pair.key.float() - shift.unsqueeze(2) for pair in pairs if pair is not None]
    values = torch.cat([held_value, *(pair.value.float() for pair in pairs if pair is not None)], dim=2)

    unrounded = F.scaled_dot_product_attention(wide, torch.cat([held_key, *keys], dim=2), values)
    assert dtype == torch.bfloat16 or (actual - unrounded).norm() <= 3e-4 * unrounded.norm()  # 16-bit queries

    scores = torch.cat([rounded(wide) @ held_key.mT, *(wide @ key.mT for key in keys)], dim=-1) / DIM**0.5
    expected = (scores.softmax(-1) @ values).to(dtype)
    torch.testing.assert_close(actual, expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=2e-5)


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
    block=st.sampled_from([16, 100, cpu.BLOCK]),
    scratch=st.sampled_from([1, 2 * 100 * 64, cpu.SCRATCH]),
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
    library.kv_append(draw(length + spare), draw(length + spare), None, ring, position)
    offset = torch.randn(*places, head_dim, generator=generator) if shifted else None
    outside = [KeyValue(draw(n).to(dtype), draw(n).to(dtype)) if n else None for n in (sink, new)]
    arguments = (draw(queries).to(dtype), ring, length, offset, *outside)
    with patch.multiple(cpu, BLOCK=block, SCRATCH=scratch):
        actual = library.kv_attention(*arguments)
    expected = meaning(*arguments)
    assert actual.dtype == dtype and actual.is_contiguous()
    step = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    torch.testing.assert_close(actual, expected, rtol=step, atol=1e-5)


def test_attention_to_nothing_is_zero() -> None:
    ring, query = empty_ring(8, 1, 2, 5, DIM), torch.randn(1, 2, 3, DIM)
    for attention in (library.kv_attention, reference.kv_attention):
        assert not attention(query, ring, 0, None, None, None).any()


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
        "dtype": ("Queries are torch.float64", but(0, torch.zeros(1, 2, 4, 64, dtype=torch.float64))),
        "codes": ("key codes are torch.int16", but(1, ring.key_codes.to(torch.int16))),
        "scales": ("value scales have shape", but(4, torch.zeros(1, 2, 4))),
        "length": ("first 6 slots was asked of a ring of 5", but(5, 6)),
        "negative length": ("first -1 slots", but(5, -1)),
        "offset": ("Key offsets have shape", but(6, torch.zeros(1, 2, 32))),
        "half a sink": ("sink needs both keys and values", but(8, None)),
        "half a chunk": ("newest chunk needs both", but(9, None)),
        "values of another length": ("newest chunk's values have shape", but(10, torch.zeros(1, 2, 2, 64))),
        "bits": (r"kept in \[4, 8\] bits; 3 were", but(11, 3)),
        "wide heads": ("at most 512", but(0, torch.zeros(1, 2, 4, 1024))),
        "elsewhere": ("value codes are on meta; expected cpu", but(3, ring.value_codes.to("meta"))),
    }


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("twin", [reference, cpu, cuda], ids=["reference", "cpu", "cuda"])
@pytest.mark.parametrize("what", list(misfits(8)))
def test_attention_that_does_not_fit_is_refused_in_a_sentence(what: str, twin: ModuleType, bits: int) -> None:
    message, arguments = misfits(bits)[what]
    with pytest.raises(ShapeError, match=message):
        library._OPS["kv_attention"].flat(twin.kv_attention)(*arguments)
