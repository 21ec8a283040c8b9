"""The structs that the kernels of `qarvd/csrc` take, field by field, and what tensors become in them."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p
from typing import overload

import torch
from torch import Tensor

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""`Type` in isa.cuh."""
_PLACE = c_int64 * 3


class ActivationArguments(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "order", "codes", "scale", "sums")),
        ("stride", c_int64),
        *((name, c_int32) for name in ("channels", "n_outlier")),
        ("width", c_int32 * 2),
        ("norm", c_float * 2),
        ("guard", c_float),
        ("type", c_int32),
    )


class DecodeArguments(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("codes", "group_scale", "table", "out")),
        ("pieces", c_int64),
        *((name, c_int32) for name in ("channels", "group", "wide_scale")),
    )


class LinearArguments(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "weight", "x_scale", "x_sums", "scale", "zero", "bias", "out")),
        *((name, c_int32) for name in ("rows", "outputs", "channels", "n_outlier", "type")),
    )


class AppendArguments(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p * 2) for name in ("source", "codes", "scale")),
        ("offset", c_void_p),
        ("stride", _PLACE * 2),
        *((name, c_int32) for name in ("heads", "tokens", "head_dim", "capacity", "position", "bits", "type")),
    )


class AttentionArguments(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("query", "out")),
        *((name, c_void_p * 2) for name in ("codes", "scale")),
        ("offset", c_void_p),
        ("plain", c_void_p * 2 * 2),
        ("query_stride", _PLACE),
        ("out_stride", _PLACE),
        ("plain_stride", _PLACE * 2 * 2),
        *((name, c_int32) for name in ("heads", "rows", "length", "capacity")),
        ("tokens", c_int32 * 2),
        ("log2e_over_root", c_float),
    )


ALIGNMENT = 16
"""Bytes: kernels read and write pieces of this size, which must begin at multiples of it. torch's own tensors do;
views into others need not. A misaligned access ends the process's use of the card."""


@overload
def aligned(x: Tensor) -> Tensor: ...
@overload
def aligned(x: None) -> None: ...
@overload
def aligned(x: Tensor | None) -> Tensor | None: ...
def aligned(x: Tensor | None) -> Tensor | None:
    """`x` in one piece of memory that begins at a multiple of `ALIGNMENT`: itself, or a copy."""
    if x is None or (x.is_contiguous() and x.data_ptr() % ALIGNMENT == 0):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def pointer(x: Tensor | None) -> int | None:
    """Where `x` lies, or null."""
    return None if x is None else x.data_ptr()


def place(x: Tensor) -> tuple[int, int, int]:
    """Strides of batch, head and token of [batch, heads, tokens, head_dim], in elements."""
    batch, head, token, _ = x.stride()
    return batch, head, token
