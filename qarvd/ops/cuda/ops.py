"""The ops on CUDA tensors: a kernel if one takes them, else the reference, which is said aloud once."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from ...log import warn_once
from .. import reference
from ..values import KeyValue, PackedWeight, Ring, Tokens
from . import device, kernels


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


def quantize_activation(x: Tensor, order: Tensor | None, n_outlier: int, guard: float) -> Tokens:
    """See `reference.quantize_activation`."""
    reason = device.refuses(x.device) or kernels.refuses_activation(x, n_outlier)
    if reason:
        _slow("quantize_activation", reason)
        return reference.quantize_activation(x, order, n_outlier, guard)
    launcher = device.launcher(x.device)
    kernels.prepare_activation(launcher)
    return kernels.quantize_activation(launcher, stream(x.device), x, order, n_outlier, guard)


def dual_scale_linear(tokens: Tokens, weight: PackedWeight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """See `reference.dual_scale_linear`."""
    where, (rows, channels) = tokens.codes.device, tokens.codes.shape
    reason = device.refuses(where) or kernels.refuses_linear(channels, weight.n_outlier, weight.bits)
    if reason:
        _slow("dual_scale_linear", reason)
        return reference.dual_scale_linear(tokens, weight, bias, dtype)
    launcher = device.launcher(where)
    kernels.prepare_linear(launcher, weight.bits)
    tile = kernels.choose_tile(weight.bits, rows, len(weight.codes), card(where).multiprocessors)
    return kernels.dual_scale_linear(launcher, stream(where), tile, tokens, weight, bias, dtype)


def kv_append(key: Tensor, value: Tensor, key_offset: Tensor | None, ring: Ring, position: int) -> None:
    """See `reference.kv_append`."""
    reason = device.refuses(key.device) or kernels.refuses_append(key, value, ring)
    if reason:
        _slow("kv_append", reason)
        return reference.kv_append(key, value, key_offset, ring, position)
    launcher = device.launcher(key.device)
    kernels.prepare_append(launcher)
    return kernels.kv_append(launcher, stream(key.device), key, value, key_offset, ring, position)


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
    reason = device.refuses(where) or kernels.refuses_attention(query, ring, sink, new, card(where).turing)
    if reason:
        _slow("kv_attention", reason)
        return reference.kv_attention(query, ring, length, key_offset, sink, new)
    launcher = device.launcher(where)
    launcher.prepare(*kernels.attention_kernel(query, ring.bits))
    return kernels.kv_attention(launcher, stream(where), query, ring, length, key_offset, sink, new)
