"""The ops on CUDA tensors: a kernel if one takes them, else the reference, which is said aloud once."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from ...log import warn_once
from .. import reference
from ..split import Columns
from ..values import DecodedWeight, KeyValue, PackedWeight, Ring, Tokens
from . import device, kernels, ring_kernels


class Card(NamedTuple):
    """What launches depend on."""

    multiprocessors: int
    turing: bool


@cache
def card(where: torch.device) -> Card:
    properties = torch.cuda.get_device_properties(where)
    return Card(properties.multi_processor_count, properties.major < 8)


def stream(where: torch.device) -> int:
    """The stream that torch works on."""
    return torch.cuda.current_stream(where).cuda_stream


def _slow(op: str, reason: str) -> None:
    warn_once(f"{op} runs in plain torch, which is far slower than its kernel: {reason}.")


def quantize_activation(x: Tensor, columns: Columns, guard: float) -> Tokens:
    """See `reference.quantize_activation`."""
    reason = device.refuses(x.device) or kernels.refuses_activation(x, columns)
    if reason:
        _slow("quantize_activation", reason)
        return reference.quantize_activation(x, columns, guard)
    launcher = device.launcher(x.device)
    kernels.prepare_activation(launcher)
    return kernels.quantize_activation(launcher, stream(x.device), x, columns, guard)


def decode_weight(weight: PackedWeight) -> Tensor:
    """See `reference.decode_weight`; without kernels it is what dequantizes weights there, which is told elsewhere."""
    where = weight.codes.device
    if weight.bits == 8 or device.refuses(where):
        return reference.decode_weight(weight)
    launcher = device.launcher(where)
    kernels.prepare_decode(launcher)
    return kernels.decode_weight(launcher, stream(where), weight)


def dual_scale_linear(tokens: Tokens, weight: DecodedWeight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """See `reference.dual_scale_linear`."""
    where, (rows, channels) = tokens.codes.device, tokens.codes.shape
    reason = device.refuses(where) or kernels.refuses_linear(channels, weight.n_outlier)
    if reason:
        _slow("dual_scale_linear", reason)
        return reference.dual_scale_linear(tokens, weight, bias, dtype)
    launcher = device.launcher(where)
    kernels.prepare_linear(launcher)
    tile = kernels.choose_tile(rows, len(weight.codes), card(where).multiprocessors)
    return kernels.dual_scale_linear(launcher, stream(where), tile, tokens, weight, bias, dtype)


def kv_append(key: Tensor, value: Tensor, key_offset: Tensor | None, ring: Ring, position: int) -> None:
    """See `reference.kv_append`."""
    reason = device.refuses(key.device) or ring_kernels.refuses_append(key, value, ring)
    if reason:
        _slow("kv_append", reason)
        return reference.kv_append(key, value, key_offset, ring, position)
    launcher = device.launcher(key.device)
    ring_kernels.prepare_append(launcher)
    return ring_kernels.kv_append(launcher, stream(key.device), key, value, key_offset, ring, position)


def kv_attention(
    query: Tensor,
    ring: Ring,
    length: int,
    key_offset: Tensor | None,
    sink: KeyValue | None,
    new: KeyValue | None,
) -> Tensor:
    """See `reference.kv_attention`."""
    where = query.device
    reason = device.refuses(where) or ring_kernels.refuses_attention(query, ring, sink, new, card(where).turing)
    if reason:
        _slow("kv_attention", reason)
        return reference.kv_attention(query, ring, length, key_offset, sink, new)
    launcher = device.launcher(where)
    launcher.prepare(*ring_kernels.attention_kernel(query, ring.bits))
    return ring_kernels.kv_attention(launcher, stream(where), query, ring, length, key_offset, sink, new)
