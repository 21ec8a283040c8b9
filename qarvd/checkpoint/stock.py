"""ComfyUI's own formats of quantized linears, both ways: `asym_w4a8_int8` of 4 and 6 bits, and `int8_tensorwise`.

Both decode to 8-bit codes with a scale for each row, as ours do. So they are read as weights with a single range, and
weights that were fitted to their grids are written so that ComfyUI opens them without this pack.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import CheckpointError, SettingError, ShapeError
from ..ops.codecs import codec_of
from ..ops.codecs.grouped import GROUPS
from ..ops.split import ChannelSplit
from ..ops.weight import QuantizedWeight
from ..recipe import POWERS_OF_4, STOCK

ASYM, TENSORWISE = STOCK
BY_BITS = {bits: name for name, held in STOCK.items() for bits in held.groups}
"""The format that holds weights of so many bits."""
_GROUPS, _ROWS, _TABLE, _CORRECTION = "weight_s_rel", "weight_s_channel", "weight_codebook", "weight_correction"
_SCALE = "weight_scale"
_CONVROT, _WIDTH, _GROUP = "convrot", "convrot_groupsize", "group_size"
"""What a marker says beside the format."""
LEAST_SCALE = 1e-12


class Stored(NamedTuple):
    """One linear as a file holds it."""

    parts: dict[str, Tensor]
    """By the ends of their names."""
    marker: dict[str, Any]


def stock_parts(name: str, weight: QuantizedWeight) -> Stored:
    """A weight in the one of ComfyUI's formats that holds so many bits, its bias apart.

    Raises SettingError, naming the linear, for one that is not on the grid of any.
    """
    codec, channels = weight.codec, weight.split.channels
    width = weight.columns.width(channels)
    format = BY_BITS.get(codec.bits)
    held = None if format is None else STOCK[format]
    fits = held and codec.group in held.groups[codec.bits] and (width if width > 1 else 0) in held.rotations
    if not fits or weight.split.n_outlier or weight.zero is not None:
        grouped = f" in groups of {codec.group}" if codec.group else ""
        turned = f", rotated by {width}" if width > 1 else ""
        raise SettingError(
            f"{name} has {codec.bits}-bit weights{grouped}{turned}, {weight.split.n_outlier} outlier channels and "
            f"{'no ' if weight.zero is None else ''}zero points, which ComfyUI's own formats can't hold. Quantize with "
            f"a recipe whose format is {' or '.join(STOCK)}."
        )
    if format == TENSORWISE:
        turned = {_CONVROT: True, _WIDTH: width} if width > 1 else {}
        return Stored({"weight": weight.codes, _SCALE: weight.scale[:, 1:]}, {"format": format} | turned)
    assert weight.stored_group_scale is not None
    parts = {"weight": weight.codes, _GROUPS: weight.stored_group_scale, _ROWS: weight.scale[:, 1]}
    if weight.table is not None:
        parts[_TABLE] = weight.table
    return Stored(parts, {"format": format, _GROUP: codec.group, _WIDTH: width})


def read_stock(name: str, marker: Mapping[str, Any], tensors: dict[str, Tensor]) -> QuantizedWeight:
    """Take one linear's tensors, in a format of ComfyUI's own, out of `tensors`.

    Raises CheckpointError for what does not fit together, and for the few forms that our kernels can't run.
    """
    format, nested = marker["format"], marker.get("params")
    conf = {**(nested if isinstance(nested, dict) else {}), **marker}

    def taken(part: str, *dtypes: torch.dtype) -> Tensor:
        tensor = tensors.pop(f"{name}.{part}", None)
        if tensor is None:
            raise CheckpointError(f"{name} is marked {format} but lacks {name}.{part}; the file is damaged.")
        if tensor.dtype not in dtypes:
            raise CheckpointError(f"{name}.{part} is {tensor.dtype}; {format} stores it as {dtypes[0]}.")
        if tensor.is_floating_point() and not (torch.isfinite(tensor.float()).all() and (tensor.float() >= 0).all()):
            raise CheckpointError(f"{name}.{part} must be finite and not negative; the file is damaged.")
        return tensor

    try:
        width = int(conf.get(_WIDTH, 256)) if format == ASYM or conf.get(_CONVROT) else 0
        codes = taken("weight", torch.int8)
        if format == TENSORWISE:
            scale = taken(_SCALE, torch.float32).reshape(-1)
            return _single(codes, 8, 0, width, scale)
        if f"{name}.{_CORRECTION}" in tensors:
            raise CheckpointError(
                f"{name} has zero points ({_CORRECTION}), which ComfyUI's loader leaves out, too. Quantize the "
                "full-precision checkpoint again, symmetrically."
            )
        relative = taken(_GROUPS, torch.float8_e4m3fn, torch.float32, torch.uint8)
        relative = relative.view(torch.float8_e4m3fn) if relative.dtype == torch.uint8 else relative
        channels = relative.shape[1] * int(conf.get(_GROUP, 16))
        bits = codes.shape[1] * 8 // channels
        if bits not in (4, 6) or bits * channels != codes.shape[1] * 8:
            raise SettingError(f"{codes.shape[1]} bytes a row and {relative.shape[1]} groups do not fit together.")
        if GROUPS[-1] < channels // relative.shape[1]:  # wide groups are several of ours with one scale
            relative = relative.repeat_interleave(channels // relative.shape[1] // GROUPS[-1], dim=1)
        table = tensors.pop(f"{name}.{_TABLE}", None)
        if table is None and bits == 4:
            table = torch.arange(-8, 8)
        rows = taken(_ROWS, torch.float32)
        table = None if table is None else table.float()
        return _single(codes, bits, channels // relative.shape[1], width, rows, relative, table)
    except (ShapeError, SettingError, LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(f"{name}, stored as {format}, can't be read: {error}") from error


def _single(
    codes: Tensor,
    bits: int,
    group: int,
    width: int,
    scale: Tensor,
    relative: Tensor | None = None,
    table: Tensor | None = None,
) -> QuantizedWeight:
    """A weight with one range. Raises ShapeError or SettingError for what ours can't be."""
    channels = codes.shape[1] * 8 // bits
    if width and (width not in POWERS_OF_4 or channels % width):
        raise SettingError(f"it is rotated in blocks of {width}; those of qarvd are {POWERS_OF_4}, and must divide it.")
    split = ChannelSplit(channels, rotation=width)
    if table is not None and not (table.isfinite().all() and (table[1:] >= table[:-1]).all()):
        raise SettingError("its table must be finite and ascend.")
    both = scale.clamp_min(LEAST_SCALE).expand(len(codes))[:, None].expand(-1, 2).contiguous()
    if relative is not None and not relative.float().all():  # groups of zeros, whose codes still decode to 0
        relative = relative.float().clamp_min(2.0**-9).to(relative.dtype)
    return QuantizedWeight(codec_of(bits, group), split, codes, both, None, relative, table)
