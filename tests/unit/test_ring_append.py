"""The ring of keys and values in 8 and 4 bits: who is written, and what with."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qarvd.errors import ShapeError
from qarvd.ops import codecs, library, reference
from qarvd.ops.codecs import CODECS

from .rings import BATCH, DIM, HEADS, dequantized, empty_ring, ring_of, tokens

laws = settings(max_examples=40, deadline=None)
widths = st.sampled_from([8, 4])


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
    library.kv_append(key, value, offset, ring, position)

    slots = [(position + i) % capacity for i in range(count)]
    others = [i for i in range(capacity) if i not in slots]
    for old, new in zip(before, ring.tensors, strict=True):
        assert torch.equal(old[:, :, others], new[:, :, others])
    stored = key if offset is None else key - offset.unsqueeze(2)
    held_key, held_value = dequantized(ring)
    for x, held, step in ((stored, held_key, ring.key_scale), (value, held_value, ring.value_scale)):
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
            append(key, value, offset, ring, position)
        position += count
    for actual, expected in zip(rings[0].tensors, rings[1].tensors, strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize(("shifted", "bits"), [(False, 8), (True, 4)])
def test_torch_accepts_kv_append(shifted: bool, bits: int) -> None:
    generator = torch.Generator().manual_seed(0)
    ring, offset = ring_of(5, generator, bits), torch.randn(BATCH, HEADS, DIM) if shifted else None
    torch.library.opcheck(torch.ops.qarvd.kv_append.default, (*tokens(3, generator), offset, *ring.tensors, 4, bits))


def test_tokens_that_do_not_fit_are_refused_in_a_sentence() -> None:
    append = library.kv_append
    ring, (key, value) = empty_ring(8, 1, 2, 4, 48), torch.zeros(2, 1, 2, 5, 48)
    few, less = key[:, :, :3], value[:, :, :2]
    with pytest.raises(ShapeError, match="5 tokens do not fit a ring of 4"):
        append(key, value, None, ring, 0)
    with pytest.raises(ShapeError, match="Values have shape"):
        append(few, less, None, ring, 0)
    with pytest.raises(ShapeError, match="position -1"):
        append(few, few, None, ring, -1)
    with pytest.raises(ShapeError, match="multiple of 32 channels, not 48"):
        append(few, few, None, ring._replace(bits=4), 0)


def test_a_codec_of_weights_is_none_of_a_cache_unless_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ring's ops would read its codes as those of another."""
    six = replace(CODECS["int8"], bits=6, keeps_cache=False)
    monkeypatch.setitem(codecs.CODECS, "int6", six)
    assert codecs.codec_of(6) is six
    ring, (key, value) = empty_ring(8, 1, 2, 4, 64), torch.zeros(2, 1, 2, 3, 64)
    with pytest.raises(ShapeError, match=r"kept in \[4, 8\] bits; 6 were asked for"):
        library.kv_append(key, value, None, ring._replace(bits=6), 0)
