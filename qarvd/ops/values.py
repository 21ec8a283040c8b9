"""What goes through the ops: quantized tokens, packed weights, keys and values, each as one value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Tokens(NamedTuple):
    """Quantized tokens; see `reference.quantize_activation`."""

    codes: Tensor
    """int8 [M, K], in the kernel's column order."""
    scale: Tensor
    """float32 [M, 2]: outlier, normal."""
    sums: Tensor
    """int32 [M, 2]: the sum of the codes of each range."""


class QuantizedActivation(NamedTuple):
    """Tokens quantized once for all linears that read them."""

    tokens: Tokens
    shape: torch.Size
    """Shape of the tokens before quantizing; the last axis is the input channels."""
    dtype: torch.dtype


class PackedWeight(NamedTuple):
    """What decoding reads of a weight [N, K]; see `weight.QuantizedWeight`."""

    codes: Tensor
    """The codec's bytes, [N, K * bits / 8]."""
    group_scale: Tensor | None
    """float8_e4m3fn or float32 [N, K / group]; None for plain codes."""
    table: Tensor | None
    """float32 [2^bits], where the codec has one."""
    bits: int


class DecodedWeight(NamedTuple):
    """What the product reads of a weight [N, K]."""

    codes: Tensor
    """int8 [N, K], in the kernel's columns."""
    scale: Tensor
    """float32 [N, 2]: outlier, normal."""
    zero: Tensor | None
    """int8 [N, 2]."""
    n_outlier: int

    def restore(self) -> Tensor:
        """Float32 [N, K] that the codes stand for, in the kernel's columns."""
        n, codes = self.n_outlier, self.codes.float()
        zero = torch.zeros_like(self.scale) if self.zero is None else self.zero.float()
        parts = [self.scale[:, 1:] * (codes[:, n:] - zero[:, 1:])]
        if n:
            parts.insert(0, self.scale[:, :1] * (codes[:, :n] - zero[:, :1]))
        return torch.cat(parts, dim=1)


class KeyValue(NamedTuple):
    """Keys and values in floating point, [batch, heads, tokens, head_dim] each."""

    key: Tensor
    value: Tensor


class Ring(NamedTuple):
    """Quantized keys and values: codes [batch, heads, capacity, head_dim * bits / 8], scales [batch, heads, capacity].

    Codes are int8, or (two 4-bit codes a byte, as `codecs/int4.py` packs them) uint8; scales are float32.
    """

    key_codes: Tensor
    key_scale: Tensor
    value_codes: Tensor
    value_scale: Tensor
    bits: int

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.key_codes, self.key_scale, self.value_codes, self.value_scale

    def to(self, device: torch.device) -> Ring:
        key_codes, key_scale, value_codes, value_scale = (x.to(device) for x in self.tensors)
        return Ring(key_codes, key_scale, value_codes, value_scale, self.bits)

    @property
    def capacity(self) -> int:
        return self.key_codes.shape[2]


@dataclass(frozen=True)
class Prepared:
    """A linear as its backend laid it out: all that allocates or loads has happened."""

    run: Callable[[Tensor, Tensor | None], Tensor]
    """Tokens [..., in] and a bias [out] -> [..., out] of the tokens' dtype."""
    run_quantized: Callable[[QuantizedActivation, Tensor | None], Tensor] | None = None
    """The same of tokens that were quantized for several linears; None if this backend can't share them."""
    traces: bool = True
    """Whether `run` can be part of a graph of torch.compile."""
    few: int = 0
    """Up to this many tokens are multiplied as they are, so that quantizing them for several linears gains nothing."""
