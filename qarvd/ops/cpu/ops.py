"""The reference a few tokens at a time: no copy of the cache, or of wide activations, in floating point is ever made.

Attention lays a block of keys and values out in float32, in memory that is used again for the next one, runs torch's
own flash kernel on it, and merges the blocks' results by their log-sum-exp. It equals the reference within the rounding
of float32; the other ops equal it to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .. import reference
from ..codecs import cache_codec_of
from ..split import Columns
from ..values import KeyValue, Ring, Tokens

PIECE = 2**21
"""Numbers quantized at a time, 8 MiB of float32; with less, threads meet too often. What is made on the way is then
small enough for the allocator to keep and use again; glibc takes blocks of more than 32 MiB from the system anew each
time, which for wide inputs costs as much as the product that follows."""

BLOCK = 8192
"""Most tokens in a block: each block costs a pass over the output, so few large ones are fastest."""
SCRATCH = 4 * 8192 * 128
"""Numbers in a block of keys, of all its batch entries and heads together (16 MiB): enough to share among threads, and
far less than a copy of the cache."""
APPENDED = 512
"""Tokens quantized at a time."""

Place = tuple[slice, slice]
"""Batch entries and heads."""
Read = Callable[[Place, slice, Tensor], None]
"""Write these tokens of a place, dequantized, into a float32 tensor [batch, heads, tokens, head_dim]."""
FLASH: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = (
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
)
"""What `F.scaled_dot_product_attention` runs on a CPU; it also tells the log-sum-exp of the scores."""


class _Part(NamedTuple):
    """Keys and values that are read in one way."""

    tokens: int
    coded: bool
    """Whether its keys are codes, which meet the query's codes."""
    read_key: Read
    read_value: Read


def quantize_activation(x: Tensor, columns: Columns, guard: float) -> Tokens:
    """`reference.quantize_activation`; to the bit, but where channels are rotated, which is done by small products."""
    channels = x.shape[-1]
    count = max(1, PIECE // channels)
    rows = x.reshape(-1, channels)
    if len(rows) <= count:
        return _quantized(rows, columns, guard)
    made = Tokens(
        rows.new_empty(rows.shape, dtype=torch.int8),
        rows.new_empty((len(rows), 2), dtype=torch.float32),
        rows.new_empty((len(rows), 2), dtype=torch.int32),
    )
    for start in range(0, len(rows), count):
        some = slice(start, start + count)
        for whole, piece in zip(made, _quantized(rows[some], columns, guard), strict=True):
            whole[some] = piece
    return made


def _quantized(rows: Tensor, columns: Columns, guard: float) -> Tokens:
    return reference.quantize_ranges(*columns.to_ranges(rows.float()), guard)


def kv_append(key: Tensor, value: Tensor, key_offset: Tensor | None, ring: Ring, position: int) -> None:
    """`reference.kv_append` a few tokens at a time, so that what it needs for itself stays small."""
    for start in range(0, key.shape[2], APPENDED):
        some = slice(start, start + APPENDED)
        reference.kv_append(key[:, :, some], value[:, :, some], key_offset, ring, position + start)


@torch.no_grad()
def kv_attention(
    query: Tensor,
    ring: Ring,
    length: int,
    key_offset: Tensor | None,
    sink: KeyValue | None,
    new: KeyValue | None,
) -> Tensor:
    """`reference.kv_attention` in blocks; `query` [batch, heads, M, head_dim] may be any view."""
    offset = None if key_offset is None else key_offset.float()
    unpack = cache_codec_of(ring.bits).unpack
    reads = (
        partial(_from_codes, ring.key_codes, ring.key_scale, unpack),
        partial(_from_codes, ring.value_codes, ring.value_scale, unpack),
    )
    parts = [_Part(length, True, *reads)]
    for held in (sink, new):
        if held is not None:
            reads = partial(_from_floats, held.key, offset), partial(_from_floats, held.value, None)
            parts.append(_Part(held.key.shape[2], False, *reads))
    longest = max(_block(part.tokens) for part in parts)
    out = query.new_zeros(query.shape)
    if not out.numel() or not longest:
        return out
    scratch: Tensor | None = None
    for place in _places(query.shape[0], query.shape[1], longest * query.shape[3]):
        wide = query[place].float().contiguous()
        if scratch is None:  # the first place is the largest
            scratch = wide.new_empty((2, *wide.shape[:2], longest, wide.shape[3]))
        out[place] = _attend(wide, parts, place, scratch[:, : wide.shape[0], : wide.shape[1]])
    return out


def _attend(query: Tensor, parts: Sequence[_Part], place: Place, scratch: Tensor) -> Tensor:
    """Attention of float32 `query` to all parts at its place; `scratch` is a block of keys and one of values."""
    rounded = torch.mul(*reference.query_codes(query))
    total: tuple[Tensor, Tensor] | None = None
    for part in parts:
        for tokens in _blocks(part.tokens):
            key, value = scratch[..., : tokens.stop - tokens.start, :].unbind()
            part.read_key(place, tokens, key)
            part.read_value(place, tokens, value)
            found = FLASH(rounded if part.coded else query, key, value)
            total = found if total is None else _merge(*total, *found)
    assert total is not None
    return total[0]


def _from_codes(
    codes: Tensor, scale: Tensor, unpack: Callable[[Tensor], Tensor], place: Place, tokens: slice, out: Tensor
) -> None:
    where = (*place, tokens)
    out.copy_(unpack(codes[where])).mul_(scale[where].unsqueeze(-1))


def _from_floats(x: Tensor, offset: Tensor | None, place: Place, tokens: slice, out: Tensor) -> None:
    out.copy_(x[(*place, tokens)])
    if offset is not None:
        out.sub_(offset[place].unsqueeze(2))


def _block(tokens: int) -> int:
    """Tokens a block when `tokens` are cut into the fewest blocks, of about one size."""
    return -(-tokens // max(1, -(-tokens // BLOCK)))


def _blocks(tokens: int) -> Iterator[slice]:
    for start in range(0, tokens, max(1, _block(tokens))):
        yield slice(start, min(start + _block(tokens), tokens))


def _places(batch: int, heads: int, numbers: int) -> Iterator[Place]:
    """Cut batch and heads so that what is done at once, `numbers` of scratch for each head, fits SCRATCH."""
    pairs = max(1, SCRATCH // numbers)
    for entry in range(0, batch, entries := max(1, pairs // heads)):
        for head in range(0, heads, some := min(heads, pairs)):
            yield slice(entry, entry + entries), slice(head, head + some)


def _merge(out: Tensor, mass: Tensor, more: Tensor, its_mass: Tensor) -> tuple[Tensor, Tensor]:
    """Attention to two sets of keys from that to each, with the log-sum-exp of their scores [batch, heads, M]."""
    share = torch.sigmoid(its_mass - mass).unsqueeze(-1)
    return out.lerp_(more, share), torch.logaddexp(mass, its_mass)
