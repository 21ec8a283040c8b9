"""The ops on CUDA tensors: a kernel where one takes them, else the reference, which is said aloud once."""

from __future__ import annotations

import warnings
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from .. import reference
from ..product import check_activation, check_linear
from ..ring import check_append, check_attention
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
    """Python shows equal warnings once."""
    warnings.warn(f"{op} runs in plain torch, which is far slower than its kernel: {reason}.", stacklevel=3)


def quantize_activation(x: Tensor, order: Tensor | None, n_outlier: int, guard: float) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.quantize_activation`."""
    check_activation(x, order, n_outlier)
    reason = device.refuses(x.device) or kernels.refuses_activation(x, n_outlier)
    if reason:
        _slow("quantize_activation", reason)
        return reference.quantize_activation(x, order, n_outlier, guard)
    launcher = device.launcher(x.device)
    kernels.prepare_activation(launcher)
    return kernels.quantize_activation(launcher, stream(x.device), x, order, n_outlier, guard)


def dual_scale_linear(
    codes: Tensor,
    scale: Tensor,
    sums: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero: Tensor | None,
    bias: Tensor | None,
    n_outlier: int,
    bits: int,
    dtype: torch.dtype,
) -> Tensor:
    """See `reference.dual_scale_linear`."""
    where = codes.device
    arguments = (codes, scale, sums, weight, weight_scale, weight_zero, bias, n_outlier, bits, dtype)
    check_linear(*arguments)
    reason = device.refuses(where) or kernels.refuses_linear(codes, n_outlier, bits)
    if reason:
        _slow("dual_scale_linear", reason)
        return reference.dual_scale_linear(*arguments)
    launcher = device.launcher(where)
    kernels.prepare_linear(launcher, bits)
    tile = kernels.choose_tile(bits, len(codes), len(weight), card(where).multiprocessors)
    return kernels.dual_scale_linear(launcher, stream(where), tile, *arguments)


def kv_append(
    key: Tensor,
    value: Tensor,
    key_offset: Tensor | None,
    key_codes: Tensor,
    key_scale: Tensor,
    value_codes: Tensor,
    value_scale: Tensor,
    position: int,
    bits: int = 8,
) -> None:
    """See `reference.kv_append`."""
    ring = (key_codes, key_scale, value_codes, value_scale)
    check_append(key, value, key_offset, ring, position, bits)
    reason = device.refuses(key.device) or kernels.refuses_append(key, value, ring)
    if reason:
        _slow("kv_append", reason)
        return reference.kv_append(key, value, key_offset, *ring, position, bits)
    launcher = device.launcher(key.device)
    kernels.prepare_append(launcher)
    return kernels.kv_append(launcher, stream(key.device), key, value, key_offset, ring, position, bits)


def kv_attention(
    query: Tensor,
    key_codes: Tensor,
    key_scale: Tensor,
    value_codes: Tensor,
    value_scale: Tensor,
    length: int,
    key_offset: Tensor | None,
    sink_key: Tensor | None,
    sink_value: Tensor | None,
    new_key: Tensor | None,
    new_value: Tensor | None,
    bits: int = 8,
) -> Tensor:
    """See `reference.kv_attention`."""
    ring, where = (key_codes, key_scale, value_codes, value_scale), query.device
    sink, new = (sink_key, sink_value), (new_key, new_value)
    check_attention(query, ring, length, key_offset, sink, new, bits)
    reason = device.refuses(where) or kernels.refuses_attention(query, ring, (*sink, *new), card(where).turing)
    if reason:
        _slow("kv_attention", reason)
        return reference.kv_attention(query, *ring, length, key_offset, *sink, *new, bits)
    launcher = device.launcher(where)
    launcher.prepare(*kernels.attention_kernel(query, bits))
    return kernels.kv_attention(launcher, stream(where), query, ring, length, key_offset, sink, new, bits)
