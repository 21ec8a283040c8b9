"""Rings of keys and values, and tokens to fill them with, for the tests of the two key/value ops."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qarvd.ops import library
from qarvd.ops.ring import codec_of_ring

BATCH, HEADS, DIM = 2, 3, 32


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
