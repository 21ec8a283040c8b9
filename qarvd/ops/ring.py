"""Which tensors the two key/value ops take; every backend asks here first, so that all refuse the same in one voice."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ShapeError
from .codecs import CODECS, Codec
from .codecs.int4 import GROUP
from .expect import FLOATS, expect

MOST_HEAD_DIM = 512
"""Products of 16-bit query codes with key codes stay below 2^31 up to here: 32512 * 127 * 512."""

Ring = tuple[Tensor, Tensor, Tensor, Tensor]
"""Key codes, key scale, value codes, value scale; codes [batch, heads, capacity, head_dim * bits / 8], int8 or (two
4-bit codes a byte, as `codecs/int4.py` packs them) uint8; scales float32 [batch, heads, capacity]."""


def check_append(key: Tensor, value: Tensor, key_offset: Tensor | None, ring: Ring, position: int, bits: int) -> None:
    """Raise ShapeError, in a sentence, unless `kv_append` can write these tokens into `ring`."""
    batch, heads, tokens, head_dim = _tokens("Keys", key, (None,) * 4, key.device)
    _tokens("Values", value, (batch, heads, tokens, head_dim), key.device)
    capacity = _check_ring(ring, batch, heads, head_dim, bits, key.device)
    _check_offset(key_offset, batch, heads, head_dim, key.device)
    if tokens > capacity:
        raise ShapeError(f"{tokens} tokens do not fit a ring of {capacity}.")
    if position < 0:
        raise ShapeError(f"Tokens cannot be written at position {position}; positions count from 0.")


def check_attention(
    query: Tensor,
    ring: Ring,
    length: int,
    key_offset: Tensor | None,
    sink: tuple[Tensor | None, Tensor | None],
    new: tuple[Tensor | None, Tensor | None],
    bits: int,
) -> None:
    """Raise ShapeError, in a sentence, unless `kv_attention` can read these tensors."""
    device = query.device
    batch, heads, _, head_dim = _tokens("Queries", query, (None,) * 4, device)
    capacity = _check_ring(ring, batch, heads, head_dim, bits, device)
    _check_offset(key_offset, batch, heads, head_dim, device)
    if not 0 <= length <= capacity:
        raise ShapeError(f"Attention to the first {length} slots was asked of a ring of {capacity}.")
    for name, (key, value) in (("sink", sink), ("newest chunk", new)):
        if (key is None) != (value is None):
            raise ShapeError(f"The {name} needs both keys and values, or neither.")
        if key is not None and value is not None:
            held = _tokens(f"The {name}'s keys", key, (batch, heads, None, head_dim), device)
            _tokens(f"The {name}'s values", value, held, device)


def codec_of_ring(bits: int) -> Codec:
    """The codec of a ring of `bits` bits. Raises ShapeError where there is none."""
    for codec in CODECS.values():
        if codec.bits == bits:
            return codec
    raise ShapeError(f"Keys and values are kept in {sorted(c.bits for c in CODECS.values())} bits; {bits} came.")


def _check_ring(ring: Ring, batch: int, heads: int, head_dim: int, bits: int, device: torch.device) -> int:
    """Capacity of the ring."""
    codec = codec_of_ring(bits)
    if head_dim > MOST_HEAD_DIM:
        raise ShapeError(f"Heads of {head_dim} channels came; at most {MOST_HEAD_DIM} are supported.")
    if bits == 4 and head_dim % GROUP:
        raise ShapeError(f"4-bit keys and values need heads of a multiple of {GROUP} channels; {head_dim} came.")
    capacity = ring[0].shape[2] if ring[0].dim() == 4 else 0
    width = head_dim * bits // 8
    for name, codes, scale in (("key", *ring[:2]), ("value", *ring[2:])):
        expect(f"The ring's {name} codes", codes, (batch, heads, capacity, width), (codec.stored,), device)
        expect(f"The ring's {name} scales", scale, (batch, heads, capacity), (torch.float32,), device)
    return capacity


def _check_offset(key_offset: Tensor | None, batch: int, heads: int, head_dim: int, device: torch.device) -> None:
    if key_offset is not None:
        expect("Key offsets", key_offset, (batch, heads, head_dim), FLOATS, device)


def _tokens(name: str, x: Tensor, shape: Sequence[int | None], device: torch.device) -> tuple[int, int, int, int]:
    expect(name, x, shape, FLOATS, device)
    batch, heads, tokens, head_dim = x.shape
    return batch, heads, tokens, head_dim
