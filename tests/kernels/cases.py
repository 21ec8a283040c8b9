"""One run of each kernel beside the reference; used by laws in this process and, under sanitizers, in others."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from emulator.launcher import Emulator
from torch import Tensor

from qarvd.ops import reference
from qarvd.ops.codecs import CODECS, Codec, codec_of
from qarvd.ops.cuda import kernels, ring_kernels
from qarvd.ops.split import ChannelSplit
from qarvd.ops.values import KeyValue, Ring
from qarvd.ops.weight import QuantizedWeight

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
STREAM = 0


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weight_of(
    codec: Codec, outputs: int, channels: int, n_outlier: int, zero: bool, seed: int, rotation: int = 0
) -> QuantizedWeight:
    """Any codes, scales and, of plain codecs, zero points."""
    generator = draw(seed)
    outliers = torch.randperm(channels, generator=generator)[:n_outlier].tolist()
    split = ChannelSplit.of(channels, outliers, rotation)
    scale = (torch.rand(outputs, 2, generator=generator) + 0.5) * torch.tensor([0.05, 0.01])
    zeros = torch.randint(-3, 4, (outputs, 2), dtype=torch.int8, generator=generator) if zero else None
    if not codec.group:
        codes = torch.randint(codec.low, codec.high + 1, (outputs, channels), dtype=torch.int8, generator=generator)
        return QuantizedWeight(codec, split, codec.pack(codes), scale, zeros)
    places = torch.randint(0, 2**codec.bits, (outputs, channels), dtype=torch.int8, generator=generator)
    groups = torch.randint(1, 0x7F, (outputs, channels // codec.group), dtype=torch.uint8, generator=generator)
    table = torch.randn(len(codec.table), generator=generator).sort().values * 3 if codec.has_table else None
    return QuantizedWeight(codec, split, codec.pack(places), scale, None, groups.view(torch.float8_e4m3fn), table)


def tokens_of(rows: int, weight: QuantizedWeight, dtype: str, seed: int) -> Tensor:
    """Loud in the outlier channels; some tokens are zero."""
    x = torch.randn(rows, weight.split.channels, generator=draw(seed))
    x[:, list(weight.split.outliers)] *= 20
    x[3::7] = 0
    return x.to(DTYPES[dtype])


def activation(
    emulator: Emulator, rows: int, channels: int, n_outlier: int, rotation: int, dtype: str, apart: int, seed: int
) -> None:
    """Equal to the bit; rows lie `apart` elements further apart than they are wide."""
    weight = weight_of(CODECS["int8"], 4, channels, n_outlier, False, seed, rotation)
    wide = torch.zeros(rows, channels + apart, dtype=DTYPES[dtype])
    x = wide[:, :channels]
    x.copy_(tokens_of(rows, weight, dtype, seed))
    given = (x, weight.columns, weight.guard)
    _equal(kernels.quantize_activation(emulator, STREAM, *given), reference.quantize_activation(*given))


def decode(
    emulator: Emulator, codec: Codec, outputs: int, channels: int, n_outlier: int, wide: bool, seed: int
) -> None:
    """Equal to the bit; `wide`: scales of groups in float32."""
    packed = weight_of(codec, outputs, channels, n_outlier, False, seed).packed
    if wide and packed.group_scale is not None:
        packed = packed._replace(group_scale=packed.group_scale.float() * 1.01)
    _equal([kernels.decode_weight(emulator, STREAM, packed)], [reference.decode_weight(packed)])


def linear(
    emulator: Emulator,
    rows: int,
    outputs: int,
    channels: int,
    n_outlier: int,
    zero: bool,
    bias: bool,
    dtype: str,
    tile: int,
    seed: int,
) -> None:
    """Equal to the bit."""
    weight = weight_of(CODECS["int8"], outputs, channels, n_outlier, zero, seed)
    tokens = tokens_of(rows, weight, dtype, seed)
    quantized = reference.quantize_activation(tokens, weight.columns, weight.guard)
    added = torch.randn(outputs, generator=draw(seed)) if bias else None
    given = (quantized, weight.decoded, added, DTYPES[dtype])
    actual = kernels.dual_scale_linear(emulator, STREAM, kernels.TILES[tile], *given)
    _equal([actual], [reference.dual_scale_linear(*given)])


def empty_ring(bits: int, batch: int, heads: int, capacity: int, head_dim: int) -> Ring:
    stored = codec_of(bits).stored

    def codes() -> Tensor:
        return torch.full((batch, heads, capacity, head_dim * bits // 8), 85, dtype=stored)

    def scale() -> Tensor:
        return torch.full((batch, heads, capacity), 0.5)

    return Ring(codes(), scale(), codes(), scale(), bits)


def chunk(batch: int, heads: int, tokens: int, head_dim: int, dtype: str, seed: int, fused: bool = False) -> Tensor:
    """[batch, heads, tokens, head_dim]; `fused`: as it comes out of a projection, tokens before heads."""
    shape = (batch, tokens, heads, head_dim) if fused else (batch, heads, tokens, head_dim)
    x = torch.randn(shape, generator=draw(seed)).to(DTYPES[dtype])
    return x.transpose(1, 2) if fused else x


def append(
    emulator: Emulator,
    bits: int,
    heads: int,
    tokens: int,
    capacity: int,
    position: int,
    head_dim: int,
    offset: bool,
    dtype: str,
    seed: int,
) -> None:
    """Equal to the bit, and slots that get nothing stay as they were."""
    key, value = (chunk(2, heads, tokens, head_dim, dtype, seed + i, fused=bool(i)) for i in range(2))
    lacking = torch.randn(2, heads, head_dim, generator=draw(seed)) if offset else None
    actual, expected = (empty_ring(bits, 2, heads, capacity, head_dim) for _ in range(2))
    ring_kernels.kv_append(emulator, STREAM, key, value, lacking, actual, position)
    reference.kv_append(key, value, lacking, expected, position)
    _equal(actual.tensors, expected.tensors)


def attention(
    emulator: Emulator,
    bits: int,
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
    """Within the rounding of weights and result to `dtype`, and of the ring's weights to 16 bits; see `allowed`."""
    batch, heads = 1, 2
    ring = empty_ring(bits, batch, heads, length + 3, head_dim)
    lacking = torch.randn(batch, heads, head_dim, generator=draw(seed)) if offset else None
    if length:
        key, value = (chunk(batch, heads, length, head_dim, "float32", seed + i) for i in range(2))
        reference.kv_append(key, value, lacking, ring, 0)
    query = chunk(batch, heads, rows, head_dim, dtype, seed + 2, fused=True) * sharpness
    held = [held_pair(batch, heads, tokens, head_dim, dtype, seed + 3 + 2 * i) for i, tokens in enumerate((sink, new))]
    actual = ring_kernels.kv_attention(emulator, STREAM, query, ring, length, lacking, *held)
    wide = [None if pair is None else KeyValue(*(x.float() for x in pair)) for pair in held]
    expected = reference.kv_attention(query.float(), ring, length, lacking, *wide)
    assert actual.dtype == query.dtype
    share = (actual.float() - expected).abs() / allowed(query.float(), ring, length, lacking, wide, query.dtype)
    assert (share <= 1).all()  # NaN is not


def held_pair(
    batch: int, heads: int, tokens: int, head_dim: int, dtype: str, seed: int, fused: bool = False
) -> KeyValue | None:
    """Keys and values in floating point, or None for no tokens."""
    if not tokens:
        return None
    return KeyValue(*(chunk(batch, heads, tokens, head_dim, dtype, seed + i, fused) for i in range(2)))


def allowed(
    query: Tensor,
    ring: Ring,
    length: int,
    offset: Tensor | None,
    held: Iterable[KeyValue | None],
    dtype: torch.dtype,
) -> Tensor:
    """One unit in the last place of `dtype` of sum p |v| (half for the weights p, half for the result), and, for each
    key of the ring, 2^-15 of the largest weight times the largest value; plus 1e-5 for float32's own rounding."""
    codec = codec_of(ring.bits)
    values = codec.unpack(ring.value_codes[:, :, :length]).float().abs() * ring.value_scale[:, :, :length, None]
    keys = codec.unpack(ring.key_codes[:, :, :length]).float() * ring.key_scale[:, :, :length, None]
    for pair in held:
        if pair is not None:
            keys = torch.cat([keys, pair.key if offset is None else pair.key - offset.unsqueeze(2)], dim=2)
            values = torch.cat([values, pair.value.abs()], dim=2)
    if not keys.shape[2]:
        return torch.full_like(query, 1e-30)
    weights = (query @ keys.mT / query.shape[-1] ** 0.5).softmax(-1)
    largest = values.amax((2, 3), keepdim=True)
    coarse = length * 2.0**-15 * weights.amax(-1, keepdim=True) * largest
    return torch.finfo(dtype).eps * (weights @ values) + coarse + 1e-5 * largest


def _equal(actual: object, expected: object) -> None:
    for a, b in zip(actual, expected, strict=True):  # type: ignore[call-overload]
        assert torch.equal(a, b), (
            f"{(a != b).sum().item()} of {a.numel()} differ, by up to {(a.double() - b.double()).abs().max()}"
        )
