"""The ops as torch sees them: flat schemas, checked and handed on as values; the reference is their meaning everywhere.

Each op is called here with values (`values`) and implemented by functions of the same values; only this file knows the
flat form between the two. Declaring twice is harmless: a pip install and a node pack may live in one process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import ShapeError
from . import checks, reference
from .cpu import ops as cpu
from .cuda import ops as cuda
from .split import Columns
from .values import DecodedWeight, KeyValue, PackedWeight, Ring, Tokens


def quantize_activation(x: Tensor, columns: Columns, guard: float) -> Tokens:
    """See `reference.quantize_activation`. Raises ShapeError for what does not fit."""
    order, n_outlier, rotation = columns
    return Tokens(*torch.ops.qarvd.quantize_activation(x, order, n_outlier, guard, rotation))


def decode_weight(weight: PackedWeight) -> Tensor:
    """See `reference.decode_weight`; 8-bit codes are what they are. Raises ShapeError for what does not fit."""
    return weight.codes if weight.bits == 8 else torch.ops.qarvd.decode_weight(*weight)


def dual_scale_linear(tokens: Tokens, weight: DecodedWeight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """See `reference.dual_scale_linear`. Raises ShapeError for what does not fit."""
    codes, scale, zero, n_outlier = weight
    return torch.ops.qarvd.dual_scale_linear(*tokens, codes, scale, zero, bias, n_outlier, dtype)


def kv_append(key: Tensor, value: Tensor, key_offset: Tensor | None, ring: Ring, position: int) -> None:
    """See `reference.kv_append`. Raises ShapeError for what does not fit."""
    torch.ops.qarvd.kv_append(key, value, key_offset, *ring.tensors, position, ring.bits)


def kv_attention(
    query: Tensor,
    ring: Ring,
    length: int,
    key_offset: Tensor | None,
    sink: KeyValue | None,
    new: KeyValue | None,
) -> Tensor:
    """See `reference.kv_attention`. Raises ShapeError for what does not fit."""
    plain = (*(sink or (None, None)), *(new or (None, None)))
    return torch.ops.qarvd.kv_attention(query, *ring.tensors, length, key_offset, *plain, ring.bits)


Flat = Callable[..., Any]
"""An implementation as torch calls it."""


class _Op(NamedTuple):
    schema: str
    flat: Callable[[Callable[..., Any]], Flat]
    """Make an implementation on values callable by the schema; it checks what comes in."""
    shapes: Flat
    """Empty results, for tracing."""


def _flat_activation(run: Callable[..., Tokens]) -> Flat:
    def call(x: Tensor, order: Tensor | None, n_outlier: int, guard: float, rotation: int = 0) -> tuple[Tensor, ...]:
        columns = Columns(order, n_outlier, rotation)
        checks.check_activation(x, columns)
        return tuple(run(x, columns, guard))

    return call


def _empty_tokens(x: Tensor, columns: Columns, guard: float) -> Tokens:
    rows, channels = x.numel() // x.shape[-1], x.shape[-1]
    return Tokens(
        x.new_empty((rows, channels), dtype=torch.int8),
        x.new_empty((rows, 2), dtype=torch.float32),
        x.new_empty((rows, 2), dtype=torch.int32),
    )


def _flat_decode(run: Callable[..., Tensor]) -> Flat:
    def call(codes: Tensor, group_scale: Tensor | None, table: Tensor | None, bits: int) -> Tensor:
        packed = PackedWeight(codes, group_scale, table, bits)
        checks.check_decode(packed)
        return run(packed)

    return call


def _empty_codes(weight: PackedWeight) -> Tensor:
    rows, stored = weight.codes.shape
    return weight.codes.new_empty((rows, stored * 8 // weight.bits), dtype=torch.int8)


def _flat_linear(run: Callable[..., Tensor]) -> Flat:
    def call(
        codes: Tensor,
        scale: Tensor,
        sums: Tensor,
        weight: Tensor,
        weight_scale: Tensor,
        weight_zero: Tensor | None,
        bias: Tensor | None,
        n_outlier: int,
        dtype: torch.dtype,
    ) -> Tensor:
        tokens, decoded = Tokens(codes, scale, sums), DecodedWeight(weight, weight_scale, weight_zero, n_outlier)
        checks.check_linear(tokens, decoded, bias, dtype)
        return run(tokens, decoded, bias, dtype)

    return call


def _empty_product(tokens: Tokens, weight: DecodedWeight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    return tokens.codes.new_empty((tokens.codes.shape[0], weight.codes.shape[0]), dtype=dtype)


def _flat_append(run: Callable[..., None]) -> Flat:
    def call(
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
        ring = Ring(key_codes, key_scale, value_codes, value_scale, bits)
        checks.check_append(key, value, key_offset, ring, position)
        run(key, value, key_offset, ring, position)

    return call


def _flat_attention(run: Callable[..., Tensor]) -> Flat:
    def call(
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
        ring = Ring(key_codes, key_scale, value_codes, value_scale, bits)
        sink, new = _pair("sink", sink_key, sink_value), _pair("newest chunk", new_key, new_value)
        checks.check_attention(query, ring, length, key_offset, sink, new)
        return run(query, ring, length, key_offset, sink, new)

    return call


def _pair(name: str, key: Tensor | None, value: Tensor | None) -> KeyValue | None:
    if (key is None) != (value is None):
        raise ShapeError(f"The {name} needs both keys and values, or neither.")
    return None if key is None or value is None else KeyValue(key, value)


_RING = "Tensor{} key_codes, Tensor{} key_scale, Tensor{} value_codes, Tensor{} value_scale"
_OPS: dict[str, _Op] = {
    "quantize_activation": _Op(
        "(Tensor x, Tensor? order, int n_outlier, float guard, int rotation=0) -> (Tensor, Tensor, Tensor)",
        _flat_activation,
        _flat_activation(_empty_tokens),
    ),
    "decode_weight": _Op(
        "(Tensor codes, Tensor? group_scale, Tensor? table, int bits) -> Tensor",
        _flat_decode,
        _flat_decode(_empty_codes),
    ),
    "dual_scale_linear": _Op(
        "(Tensor codes, Tensor scale, Tensor sums, Tensor weight, Tensor weight_scale, Tensor? weight_zero, "
        "Tensor? bias, int n_outlier, ScalarType dtype) -> Tensor",
        _flat_linear,
        _flat_linear(_empty_product),
    ),
    "kv_append": _Op(
        f"(Tensor key, Tensor value, Tensor? key_offset, {_RING.format('(a!)', '(b!)', '(c!)', '(d!)')}, "
        "int position, int bits=8) -> ()",
        _flat_append,
        _flat_append(lambda *_: None),
    ),
    "kv_attention": _Op(
        f"(Tensor query, {_RING.format('', '', '', '')}, int length, Tensor? key_offset, Tensor? sink_key, "
        "Tensor? sink_value, Tensor? new_key, Tensor? new_value, int bits=8) -> Tensor",
        _flat_attention,
        _flat_attention(lambda query, *_: query.new_empty(query.shape)),
    ),
}
_FASTER: dict[str, Any] = {"CPU": cpu, "CUDA": cuda}
"""Faster twins of the reference, by kind of device: modules with a function for each op that they have (on a CPU
linears are laid out first: `backends/cpu.py`)."""

_LIBRARY = torch.library.Library("qarvd", "FRAGMENT")
"""Ops live as long as it does."""


def _declare(name: str, op: _Op) -> None:
    if hasattr(torch.ops.qarvd, name):
        return
    _LIBRARY.define(f"{name}{op.schema}")
    _LIBRARY.impl(name, op.flat(getattr(reference, name)), "CompositeExplicitAutograd")
    _LIBRARY.impl(name, op.shapes, "Meta")  # `register_fake` would do as well, but look for its caller for 0.1 s
    for kind, twin in _FASTER.items():
        if hasattr(twin, name):
            _LIBRARY.impl(name, op.flat(getattr(twin, name)), kind)


for _name, _op in _OPS.items():
    _declare(_name, _op)
