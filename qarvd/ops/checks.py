"""Which tensors the ops take; `library` asks here before any backend, so that all refuse the same in one voice."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ShapeError
from ..recipe import ROTATIONS
from .codecs import cache_codec_of, codec_of
from .codecs.int4 import GROUP
from .codecs.planes import COLUMNS
from .split import Columns
from .values import DecodedWeight, KeyValue, PackedWeight, Ring, Tokens

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
MOST_HEAD_DIM = 512
"""Products of 16-bit query codes with key codes stay below 2^31 up to here: 32512 * 127 * 512."""


def check_activation(x: Tensor, columns: Columns) -> None:
    """Raise ShapeError, in a sentence, unless `quantize_activation` can take these tokens [..., channels]."""
    if not x.dim() or not x.shape[-1]:
        raise ShapeError(f"Tokens of shape {tuple(x.shape)} have no channels.")
    _expect("Tokens", x, x.shape, FLOATS, x.device)
    channels = x.shape[-1]
    if not 0 <= columns.n_outlier < channels:
        raise ShapeError(f"{columns.n_outlier} of {channels} channels can't be outliers: at least one must be none.")
    if columns.order is not None:
        _expect("Channels in the kernel's order", columns.order, (channels,), (torch.int64, torch.int32), x.device)
    if columns.rotation not in ROTATIONS:
        raise ShapeError(f"Tokens can't be rotated in blocks of {columns.rotation} channels.")


def check_decode(weight: PackedWeight) -> None:
    """Raise ShapeError (SettingError for bits), in a sentence, unless `decode_weight` can take this weight."""
    codes, group_scale, table, bits = weight
    if not 0 < bits < 8:
        raise ShapeError(f"{bits}-bit codes need no decoding.")
    if codes.dim() != 2:
        raise ShapeError(f"The weight's codes have shape {tuple(codes.shape)}; two axes were expected.")
    rows, channels = codes.shape[0], codes.shape[1] * 8 // bits
    if codes.shape[1] * 8 % bits or channels % COLUMNS:
        raise ShapeError(f"{bits}-bit codes need a multiple of {COLUMNS} channels, not {codes.shape[1]} bytes a row.")
    group = 0
    if group_scale is not None:
        scales = (torch.float8_e4m3fn, torch.float32)
        _expect("Scales of groups", group_scale, (rows, None), scales, codes.device)
        if not group_scale.shape[1] or channels % group_scale.shape[1]:
            raise ShapeError(f"{group_scale.shape[1]} groups can't share {channels} channels alike.")
        group = channels // group_scale.shape[1]
    codec = codec_of(bits, group)
    _expect("The weight's codes", codes, (rows, None), (codec.stored,), codes.device)
    if (table is None) == codec.has_table:
        raise ShapeError(f"Weights stored as {codec.name} {'need a' if codec.has_table else 'have no'} table.")
    if table is not None:
        _expect("Tables", table, (len(codec.table),), (torch.float32,), codes.device)


def check_linear(tokens: Tokens, weight: DecodedWeight, bias: Tensor | None, dtype: torch.dtype) -> None:
    """Raise ShapeError, in a sentence, unless `dual_scale_linear` can take these."""
    device = tokens.codes.device
    _expect("The tokens' codes", tokens.codes, (None, None), (torch.int8,), device)
    rows, channels = tokens.codes.shape
    _expect("The tokens' scales", tokens.scale, (rows, 2), (torch.float32,), device)
    _expect("The tokens' sums", tokens.sums, (rows, 2), (torch.int32,), device)
    _expect("The weight's codes", weight.codes, (None, channels), (torch.int8,), device)
    outputs = weight.codes.shape[0]
    _expect("The weight's scales", weight.scale, (outputs, 2), (torch.float32,), device)
    if weight.zero is not None:
        _expect("The weight's zero points", weight.zero, (outputs, 2), (torch.int8,), device)
    if bias is not None:
        _expect("Biases", bias, (outputs,), FLOATS, device)
    if not 0 <= weight.n_outlier <= channels:
        raise ShapeError(f"{weight.n_outlier} of {channels} channels can't be outliers.")
    if dtype not in FLOATS:
        raise ShapeError(f"Results were asked for as {dtype}; expected {' or '.join(map(str, FLOATS))}.")


def check_append(key: Tensor, value: Tensor, key_offset: Tensor | None, ring: Ring, position: int) -> None:
    """Raise ShapeError, in a sentence, unless `kv_append` can write these tokens into `ring`."""
    batch, heads, tokens, head_dim = _tokens("Keys", key, (None,) * 4, key.device)
    _tokens("Values", value, (batch, heads, tokens, head_dim), key.device)
    _check_ring(ring, batch, heads, head_dim, key.device)
    _check_offset(key_offset, batch, heads, head_dim, key.device)
    if tokens > ring.capacity:
        raise ShapeError(f"{tokens} tokens do not fit a ring of {ring.capacity}.")
    if position < 0:
        raise ShapeError(f"Tokens cannot be written at position {position}; positions count from 0.")


def check_attention(
    query: Tensor,
    ring: Ring,
    length: int,
    key_offset: Tensor | None,
    sink: KeyValue | None,
    new: KeyValue | None,
) -> None:
    """Raise ShapeError, in a sentence, unless `kv_attention` can read these tensors."""
    device = query.device
    batch, heads, _, head_dim = _tokens("Queries", query, (None,) * 4, device)
    _check_ring(ring, batch, heads, head_dim, device)
    _check_offset(key_offset, batch, heads, head_dim, device)
    if not 0 <= length <= ring.capacity:
        raise ShapeError(f"Attention to the first {length} slots was asked of a ring of {ring.capacity}.")
    for name, held in (("sink", sink), ("newest chunk", new)):
        if held is not None:
            shape = _tokens(f"The {name}'s keys", held.key, (batch, heads, None, head_dim), device)
            _tokens(f"The {name}'s values", held.value, shape, device)


def _check_ring(ring: Ring, batch: int, heads: int, head_dim: int, device: torch.device) -> None:
    codec = cache_codec_of(ring.bits)
    if head_dim > MOST_HEAD_DIM:
        raise ShapeError(f"Heads have {head_dim} channels; at most {MOST_HEAD_DIM} are supported.")
    if ring.bits == 4 and head_dim % GROUP:
        raise ShapeError(f"4-bit keys and values need heads of a multiple of {GROUP} channels, not {head_dim}.")
    capacity = ring.capacity if ring.key_codes.dim() == 4 else 0
    width = head_dim * ring.bits // 8
    for name, codes, scale in (
        ("key", ring.key_codes, ring.key_scale),
        ("value", ring.value_codes, ring.value_scale),
    ):
        _expect(f"The ring's {name} codes", codes, (batch, heads, capacity, width), (codec.stored,), device)
        _expect(f"The ring's {name} scales", scale, (batch, heads, capacity), (torch.float32,), device)


def _check_offset(key_offset: Tensor | None, batch: int, heads: int, head_dim: int, device: torch.device) -> None:
    if key_offset is not None:
        _expect("Key offsets", key_offset, (batch, heads, head_dim), FLOATS, device)


def _tokens(name: str, x: Tensor, shape: Sequence[int | None], device: torch.device) -> tuple[int, int, int, int]:
    _expect(name, x, shape, FLOATS, device)
    batch, heads, tokens, head_dim = x.shape
    return batch, heads, tokens, head_dim


def _expect(
    name: str, x: Tensor, shape: Sequence[int | None], dtypes: Sequence[torch.dtype], device: torch.device
) -> None:
    """Raise ShapeError unless `x`, called by a `name` in the plural, has this shape (None: any), dtype and device."""
    if x.dim() != len(shape) or any(s is not None and s != n for s, n in zip(shape, x.shape, strict=True)):
        expected = ", ".join("any" if s is None else str(s) for s in shape)
        raise ShapeError(f"{name} have shape {tuple(x.shape)}; expected ({expected}).")
    if x.dtype not in dtypes:
        raise ShapeError(f"{name} are {x.dtype}; expected {' or '.join(map(str, dtypes))}.")
    if x.device != device:
        raise ShapeError(f"{name} are on {x.device}; expected {device}.")
