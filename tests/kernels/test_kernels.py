"""Every kernel, run on the CPU, equals the reference: eager and lazy copies, three schedules, ragged sizes."""

from __future__ import annotations

from collections.abc import Callable

import cases
import pytest
import torch
from emulator.build import Library
from emulator.launcher import Emulator, Schedule
from hypothesis import given, settings
from hypothesis import strategies as st

from qarvd.ops import reference
from qarvd.ops.codecs import CODECS
from qarvd.ops.cuda import ring_kernels
from qarvd.ops.values import KeyValue
from qarvd.recipe import ROTATIONS

laws = settings(max_examples=200, deadline=None, print_blob=True)
BITS = (8, 4)
seeds = st.integers(0, 2**16)
dtypes = st.sampled_from(sorted(cases.DTYPES))
halves = st.sampled_from(["float16", "bfloat16"])


@pytest.fixture(scope="session")
def emulators(compiled_kernels: Callable[..., Library]) -> list[Emulator]:
    """All ways to run."""
    library = compiled_kernels("plain")
    return [Emulator(library, lazy=lazy, schedule=s, seed=5) for lazy in (False, True) for s in Schedule]


ways = st.integers(0, 5)


@st.composite
def channel_counts(draw: st.DrawFn) -> tuple[int, int]:
    """Input channels, and how many of them are outliers."""
    groups = draw(st.integers(1, 11))
    return 32 * groups, 32 * draw(st.integers(0, groups // 2))


@laws
@given(
    way=ways,
    rows=st.integers(0, 9),
    channels=channel_counts(),
    rotation=st.sampled_from(ROTATIONS),
    dtype=dtypes,
    apart=st.sampled_from([0, 3]),
    seed=seeds,
)
def test_activations_are_quantized_as_the_reference_says(
    emulators: list[Emulator],
    way: int,
    rows: int,
    channels: tuple[int, int],
    rotation: int,
    dtype: str,
    apart: int,
    seed: int,
) -> None:
    cases.activation(emulators[way], rows, *channels, rotation, dtype, apart, seed)


@pytest.mark.parametrize(("channels", "n_outlier"), [(4096, 0), (4096, 32), (4160, 64), (16384, 0), (16096, 96)])
def test_wide_tokens_are_quantized_as_the_reference_says(
    emulators: list[Emulator], channels: int, n_outlier: int
) -> None:
    for way, emulator in enumerate(emulators):
        cases.activation(emulator, 3, channels, n_outlier, 256, "bfloat16", 0, way)


@pytest.mark.parametrize("name", [name for name, codec in CODECS.items() if codec.bits < 8])
@settings(max_examples=40, deadline=None, print_blob=True)
@given(way=ways, outputs=st.integers(0, 40), channels=channel_counts(), wide=st.booleans(), seed=seeds)
def test_weights_are_decoded_as_the_reference_says(
    emulators: list[Emulator], name: str, way: int, outputs: int, channels: tuple[int, int], wide: bool, seed: int
) -> None:
    unit = max(1, CODECS[name].group // 32)
    every, outliers = channels
    cases.decode(emulators[way], CODECS[name], outputs, unit * every, unit * outliers, wide, seed)


@laws
@given(
    way=ways,
    rows=st.integers(0, 140),
    outputs=st.integers(1, 140),
    channels=channel_counts(),
    zero=st.booleans(),
    bias=st.booleans(),
    dtype=dtypes,
    tile=st.integers(0, 1),
    seed=seeds,
)
def test_a_linear_is_what_the_reference_says(
    emulators: list[Emulator],
    way: int,
    rows: int,
    outputs: int,
    channels: tuple[int, int],
    zero: bool,
    bias: bool,
    dtype: str,
    tile: int,
    seed: int,
) -> None:
    cases.linear(emulators[way], rows, outputs, *channels, zero, bias, dtype, tile, seed)


@pytest.mark.parametrize("bits", BITS)
@laws
@given(
    way=ways,
    heads=st.integers(1, 3),
    tokens=st.integers(0, 12),
    spare=st.integers(0, 5),
    position=st.integers(0, 40),
    head_dim=st.sampled_from([32, 64, 96, 128, 256]),
    offset=st.booleans(),
    dtype=dtypes,
    seed=seeds,
)
def test_a_ring_is_filled_as_the_reference_says(
    emulators: list[Emulator],
    bits: int,
    way: int,
    heads: int,
    tokens: int,
    spare: int,
    position: int,
    head_dim: int,
    offset: bool,
    dtype: str,
    seed: int,
) -> None:
    cases.append(emulators[way], bits, heads, tokens, max(1, tokens + spare), position, head_dim, offset, dtype, seed)


@pytest.mark.parametrize("bits", BITS)
@laws
@given(
    way=ways,
    rows=st.integers(0, 70),
    length=st.one_of(st.integers(0, 200), st.sampled_from([64, 128])),
    sink=st.integers(0, 70),
    new=st.integers(0, 70),
    head_dim=st.sampled_from([64, 128]),
    offset=st.booleans(),
    dtype=halves,
    sharpness=st.sampled_from([0.1, 1.0, 4.0]),
    seed=seeds,
)
def test_attention_is_what_the_reference_says_but_for_rounding(
    emulators: list[Emulator],
    bits: int,
    way: int,
    rows: int,
    length: int,
    sink: int,
    new: int,
    head_dim: int,
    offset: bool,
    dtype: str,
    sharpness: float,
    seed: int,
) -> None:
    cases.attention(emulators[way], bits, rows, length, sink, new, head_dim, offset, dtype, sharpness, seed)


@pytest.mark.parametrize("where", ["query", "ring's key", "newest key"])
@pytest.mark.parametrize("bits", BITS)
def test_attention_hides_no_nan(emulators: list[Emulator], bits: int, where: str) -> None:
    """One in a query is seen in its row, one in a key in all rows of its head."""
    ring = cases.empty_ring(bits, 1, 2, 70, 64)
    key, value, query, new_key, new_value = (cases.chunk(1, 2, 70, 64, "float16", i) for i in range(5))
    {"query": query, "ring's key": key, "newest key": new_key}[where][0, 1, 3, 5] = float("nan")
    reference.kv_append(key, value, None, ring, 0)
    new = KeyValue(new_key, new_value)
    actual = ring_kernels.kv_attention(emulators[0], cases.STREAM, query, ring, 70, None, None, new)
    expected = torch.zeros(2, 70, dtype=torch.bool)
    expected[1, 3 if where == "query" else slice(None)] = True
    assert torch.equal(actual[0].isnan().any(-1), expected)
    alone = ring_kernels.kv_attention(emulators[0], cases.STREAM, query, ring, 70, None, None, None)
    assert torch.equal(alone[0].isnan().any(-1), expected & (where != "newest key"))
