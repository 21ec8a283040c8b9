"""Rings of keys and values, and tokens to fill them with, for the tests of the two key/value ops."""

import torch

from qarvd.ops import library
from qarvd.ops.codecs import cache_codec_of
from qarvd.ops.values import KeyValue, Ring

BATCH, HEADS, DIM = 2, 3, 32


def dequantized(ring: Ring) -> KeyValue:
    """What the codes of `ring` stand for."""
    unpack = cache_codec_of(ring.bits).unpack
    return KeyValue(
        unpack(ring.key_codes) * ring.key_scale.unsqueeze(-1), unpack(ring.value_codes) * ring.value_scale.unsqueeze(-1)
    )


def empty_ring(bits: int, batch: int, heads: int, capacity: int, head_dim: int) -> Ring:
    room, stored = (batch, heads, capacity), cache_codec_of(bits).stored
    codes = [torch.zeros(*room, head_dim * bits // 8, dtype=stored) for _ in range(2)]
    scales = [torch.zeros(room) for _ in range(2)]
    return Ring(codes[0], scales[0], codes[1], scales[1], bits)


def ring_of(capacity: int, generator: torch.Generator, bits: int = 8) -> Ring:
    """A ring full of earlier tokens."""
    ring = empty_ring(bits, BATCH, HEADS, capacity, DIM)
    library.kv_append(*tokens(capacity, generator), None, ring, 0)
    return ring


def tokens(count: int, generator: torch.Generator) -> KeyValue:
    return KeyValue(*torch.randn(2, BATCH, HEADS, count, DIM, generator=generator))
