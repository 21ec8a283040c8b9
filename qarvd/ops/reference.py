"""What each op means, to the bit, in plain torch. Every other backend is a faster twin of this file.

`library` checks what comes here (`checks`).

Shapes: M rows (tokens), K input channels, N output channels; the first `n_outlier` columns of the kernel's column
order are the outlier range, the others the normal range.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..float64 import to_float64
from .codecs import cache_codec_of, codec_of
from .hadamard import butterflies
from .split import Columns
from .values import DecodedWeight, KeyValue, PackedWeight, Ring, Tokens

QMAX = 127
QUERY_QMAX = 32512
"""Largest code of a query: 127 * 256, so that its upper byte, rounded, is a signed 8-bit code too."""
TINY = 1e-12
"""Scales are never below this, so that an all-zero row has codes 0 and a finite inverse."""


def symmetric_scale(absmax: Tensor, qmax: int = QMAX) -> Tensor:
    """Step of signed codes up to `qmax` that reach `absmax`, float32."""
    return (absmax.float() * (1.0 / qmax)).clamp_min(TINY)


def to_codes(x: Tensor, scale: Tensor, qmax: int = QMAX) -> Tensor:
    """One division per scale, a float32 product, round half to even, clamp to +-qmax; int8."""
    return _whole(x, scale, qmax).to(torch.int8)


def _whole(x: Tensor, scale: Tensor, qmax: int) -> Tensor:
    """Codes as whole numbers in float32."""
    return (x.float() * (1.0 / scale)).round_().clamp_(-qmax, qmax)


def quantize_activation(x: Tensor, columns: Columns, guard: float) -> Tokens:
    """Permute and rotate input channels, and quantize each token in two ranges.

    `x` [..., K] float; `guard` is the least ratio of the normal to the outlier scale that keeps the accumulator of the
    linear below 2^30. The scale of an empty outlier range is 0.
    """
    order, n, _ = columns
    rows = x.reshape(-1, x.shape[-1]).float()
    if order is not None:
        rows = rows.gather(-1, order.long().expand(rows.shape))
    outlier, normal = (butterflies(part, columns.width(part.shape[1])) for part in (rows[:, :n], rows[:, n:]))
    return quantize_ranges(outlier, normal, guard)


def quantize_ranges(outlier: Tensor, normal: Tensor, guard: float) -> Tokens:
    """Quantize tokens whose ranges, float32 [M, n_outlier] and [M, K - n_outlier], are permuted and rotated already."""
    normal_scale = symmetric_scale(normal.abs().amax(1, keepdim=True))
    if outlier.shape[1]:
        outlier_scale = symmetric_scale(outlier.abs().amax(1, keepdim=True))
        normal_scale = torch.maximum(normal_scale, outlier_scale * guard)
    else:
        outlier_scale = torch.zeros_like(normal_scale)
    parts = to_codes(outlier, outlier_scale), to_codes(normal, normal_scale)
    sums = torch.stack([part.sum(1, dtype=torch.int32) for part in parts], dim=1)
    return Tokens(torch.cat(parts, dim=1), torch.cat([outlier_scale, normal_scale], dim=1), sums)


def decode_weight(weight: PackedWeight) -> Tensor:
    """The 8-bit codes of a weight, int8 [N, K]: as they are stored, or its table's entries times their group's scale.

    The product, in float32, is rounded half to even and clamped to +-127.
    """
    codes, group_scale, table, bits = weight
    group = 0 if group_scale is None else codes.shape[1] * 8 // bits // group_scale.shape[1]
    return codec_of(bits, group).decode(codes, group_scale, table)


def dual_scale_linear(tokens: Tokens, weight: DecodedWeight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Multiply quantized tokens by a quantized weight [N, K]: one K loop, rescaled once where the ranges meet.

    `bias` [N]. Returns [M, N] of `dtype`.

    The outlier range is accumulated first; then the accumulator becomes rint(float(acc) * ratio), the ratio being
    that of the two ranges' scales, and the normal range is added to it. Epilogue, float32, in this order: product of
    the normal scales, product with the accumulator, zero points, bias.
    """
    codes, scale, zero, n = weight
    outlier_x, normal_x = tokens.scale.unbind(1)
    outlier_w, normal_w = scale.unbind(1)
    total = _integer_product(tokens.codes[:, n:], codes[:, n:])
    if n:
        first = _integer_product(tokens.codes[:, :n], codes[:, :n])
        ratio = (outlier_x / normal_x)[:, None] * (outlier_w / normal_w)
        total = (first.float() * ratio).round().long() + total
    out = total.float() * (normal_x[:, None] * normal_w)
    if zero is not None:
        outlier_zero, normal_zero = zero.float().unbind(1)
        shift = (normal_x * tokens.sums[:, 1])[:, None] * (normal_w * normal_zero)
        if n:
            shift = (outlier_x * tokens.sums[:, 0])[:, None] * (outlier_w * outlier_zero) + shift
        out = out - shift
    if bias is not None:
        out = out + bias.float()
    return out.to(dtype)


def _integer_product(a: Tensor, b: Tensor) -> Tensor:
    """a [M, K] @ b [N, K]^T of integers, exact: float64 holds every partial sum."""
    return (to_float64(a) @ to_float64(b).T).long().to(a.device)


def kv_append(key: Tensor, value: Tensor, key_offset: Tensor | None, ring: Ring, position: int) -> None:
    """Quantize tokens into a ring: token i goes to slot (position + i) mod capacity; nothing else changes.

    `key` (rotated) and `value` [batch, heads, tokens, head_dim]; a token's scale in a head is the largest magnitude
    over 127 (8 bits) or 7 (4 bits); `key_offset` [batch, heads, head_dim] is taken off every key first (the same in
    `kv_attention`).
    """
    codec = cache_codec_of(ring.bits)
    if key_offset is not None:
        key = key.float() - key_offset.float().unsqueeze(2)
    for x, codes, scale in (
        (key, ring.key_codes, ring.key_scale),
        (value, ring.value_codes, ring.value_scale),
    ):
        step = symmetric_scale(x.abs().amax(-1), codec.high)
        packed = codec.pack(to_codes(x, step.unsqueeze(-1), codec.high))
        for source, slots in ring_runs(position, key.shape[2], ring.capacity):
            codes[:, :, slots], scale[:, :, slots] = packed[:, :, source], step[:, :, source]


def ring_runs(position: int, tokens: int, capacity: int) -> Iterator[tuple[slice, slice]]:
    """Where tokens from `position` on lie: ranges (of the tokens, of the ring), one or two."""
    done = 0
    while done < tokens:
        slot = (position + done) % capacity
        run = min(tokens - done, capacity - slot)
        yield slice(done, done + run), slice(slot, slot + run)
        done += run


def query_codes(query: Tensor) -> tuple[Tensor, Tensor]:
    """16-bit codes, as whole numbers in float32 [..., head_dim], and their scale [..., 1]."""
    scale = symmetric_scale(query.abs().amax(-1, keepdim=True), QUERY_QMAX)
    return _whole(query, scale, QUERY_QMAX), scale


def kv_attention(
    query: Tensor,
    ring: Ring,
    length: int,
    key_offset: Tensor | None,
    sink: KeyValue | None,
    new: KeyValue | None,
) -> Tensor:
    """Attend to the first `length` slots of a ring, and to a sink and a newest chunk held in floating point.

    `query` [batch, heads, M, head_dim]; sink and new [batch, heads, n, head_dim].
    Queries get 16-bit codes c, a scale per token and head, because 8-bit ones alone would cost 7e-3 of the result
    (Gaussian data, 8,192 keys, head_dim 128) and raise an int8 ring's error to 1.23x; 16-bit ones cost 3e-5. Split
    into two signed bytes, (c + 128) >> 8 and the rest, they meet the ring's keys as integers. Scores are float32(dot)
    * (query scale * key scale); softmax and the product with the values are float32. Returns the shape and dtype of
    `query`, zeros if there is nothing to attend to.
    """
    unpack = cache_codec_of(ring.bits).unpack
    wide = query.float()
    codes, step = query_codes(wide)
    high = ((codes + 128) * (1 / 256)).floor_()
    keys = unpack(ring.key_codes[:, :, :length]).float().mT
    # Both products are exact, being below 2^24; the sum of the two is rounded once.
    dots = torch.add((codes - 256 * high) @ keys, high @ keys, alpha=256)
    scores = [dots * (step * ring.key_scale[:, :, None, :length])]
    values = [unpack(ring.value_codes[:, :, :length]).float() * ring.value_scale[:, :, :length, None]]
    for held in (sink, new):
        if held is not None:
            key = held.key.float() if key_offset is None else held.key.float() - key_offset.float().unsqueeze(2)
            scores.append(wide @ key.mT)
            values.append(held.value.float())
    weights = (torch.cat(scores, dim=-1) * (1.0 / math.sqrt(query.shape[-1]))).softmax(-1)
    return (weights @ torch.cat(values, dim=2)).to(query.dtype)
