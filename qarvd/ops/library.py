"""The ops as torch sees them: schemas, the reference as their meaning on every device, shapes for tracing.

Declaring twice is harmless: a pip install and a node pack may live in one process.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import cpu_activation, cpu_attention, reference
from .cuda import ops as cuda

_WEIGHT = "Tensor weight, Tensor weight_scale, Tensor? weight_zero, Tensor? bias"
_RING = "Tensor{} key_codes, Tensor{} key_scale, Tensor{} value_codes, Tensor{} value_scale"


def _quantize_activation(x: Tensor, order: Tensor | None, n_outlier: int, guard: float) -> tuple[Tensor, ...]:
    rows, columns = x.numel() // x.shape[-1], x.shape[-1]
    return (
        x.new_empty((rows, columns), dtype=torch.int8),
        x.new_empty((rows, 2), dtype=torch.float32),
        x.new_empty((rows, 2), dtype=torch.int32),
    )


def _dual_scale_linear(
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
    return codes.new_empty((codes.shape[0], weight.shape[0]), dtype=dtype)


def _kv_append(*_: object) -> None:
    return None


def _kv_attention(query: Tensor, *_: object) -> Tensor:
    return query.new_empty(query.shape)


_OPS: dict[str, tuple[str, Callable[..., object], Callable[..., object]]] = {
    "quantize_activation": (
        "(Tensor x, Tensor? order, int n_outlier, float guard) -> (Tensor, Tensor, Tensor)",
        reference.quantize_activation,
        _quantize_activation,
    ),
    "dual_scale_linear": (
        f"(Tensor codes, Tensor scale, Tensor sums, {_WEIGHT}, int n_outlier, int bits, ScalarType dtype) -> Tensor",
        reference.dual_scale_linear,
        _dual_scale_linear,
    ),
    "kv_append": (
        f"(Tensor key, Tensor value, Tensor? key_offset, {_RING.format('(a!)', '(b!)', '(c!)', '(d!)')}, "
        "int position, int bits=8) -> ()",
        reference.kv_append,
        _kv_append,
    ),
    "kv_attention": (
        f"(Tensor query, {_RING.format('', '', '', '')}, int length, Tensor? key_offset, Tensor? sink_key, "
        "Tensor? sink_value, Tensor? new_key, Tensor? new_value, int bits=8) -> Tensor",
        reference.kv_attention,
        _kv_attention,
    ),
}


_FASTER: dict[str, dict[str, Callable[..., object]]] = {
    "CPU": {
        "quantize_activation": cpu_activation.quantize_activation,
        "kv_append": cpu_attention.kv_append,
        "kv_attention": cpu_attention.kv_attention,
    },
    "CUDA": {name: getattr(cuda, name) for name in _OPS},
}
"""Faster twins of the reference, by kind of device (on a CPU linears are laid out first: `cpu.py`)."""


_LIBRARY = torch.library.Library("qarvd", "FRAGMENT")
"""Ops live as long as it does."""


def _declare(name: str, schema: str, meaning: Callable[..., object], shapes: Callable[..., object]) -> None:
    if hasattr(torch.ops.qarvd, name):
        return
    _LIBRARY.define(f"{name}{schema}")
    _LIBRARY.impl(name, meaning, "CompositeExplicitAutograd")
    _LIBRARY.impl(name, shapes, "Meta")  # `register_fake` would do as well, but look for its caller for 0.1 s
    for kind, twins in _FASTER.items():
        if name in twins:
            _LIBRARY.impl(name, twins[name], kind)


for _name, _op in _OPS.items():
    _declare(_name, *_op)

quantize_activation = torch.ops.qarvd.quantize_activation
dual_scale_linear = torch.ops.qarvd.dual_scale_linear
kv_append = torch.ops.qarvd.kv_append
kv_attention = torch.ops.qarvd.kv_attention
