"""The file format of quantized linears, both ways (docs/format.md)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, ShapeError
from ..ops.codecs import CODECS
from ..ops.split import ChannelSplit
from ..ops.weight import LEAST_RATIO, QuantizedWeight
from ..recipe import STOCK
from .stock import read_stock, stock_parts

MARKER = "comfy_quant"
FORMATS = {codec.format: codec for codec in CODECS.values()}
"""Codecs by the name of their file format."""

_WEIGHT, _SCALE, _OUTLIERS, _ROTATION = "weight", "weight_scale", "weight_outlier_idx", "weight_rotation"
_ZERO, GROUP_SCALE, _TABLE = "weight_zero", "weight_group_scale", "weight_table"
_DTYPES = {
    _SCALE: torch.float32,
    _OUTLIERS: torch.int32,
    _ROTATION: torch.int32,
    _ZERO: torch.int8,
    GROUP_SCALE: torch.float8_e4m3fn,
    _TABLE: torch.float32,
}
_ALSO = {_SCALE: torch.bfloat16, GROUP_SCALE: torch.float32}
"""Beside scales of groups: row scales are bfloat16 where that loses nothing, and those of groups may be wider."""
TENSORS = (_WEIGHT, *_DTYPES, MARKER)
"""Ends of the names of the tensors that store a linear, but for its bias."""


def stored_parts(weight: QuantizedWeight) -> dict[str, Tensor]:
    """The tensors that store a weight, the marker apart, by the ends of their names."""
    split, made = weight.split, {_WEIGHT: weight.codes}
    made[_SCALE] = weight.stored_scale
    made[_OUTLIERS] = torch.tensor(split.outliers, dtype=torch.int32)
    if split.rotation:
        made[_ROTATION] = torch.tensor([split.rotation], dtype=torch.int32)
    others = ((_ZERO, weight.zero), (GROUP_SCALE, weight.stored_group_scale), (_TABLE, weight.table))
    return made | {part: tensor for part, tensor in others if tensor is not None}


def write_linear(name: str, weight: QuantizedWeight, stock: bool = False) -> Iterator[tuple[str, Tensor]]:
    """The tensors that store one quantized linear, its bias apart; `stock`: in one of ComfyUI's own formats.

    Raises SettingError, naming the linear, for a weight that those can't hold.
    """
    if stock:
        parts, marker = stock_parts(name, weight)
    else:
        parts, marker = stored_parts(weight), {"format": weight.codec.format}
    for part, tensor in parts.items():
        yield f"{name}.{part}", tensor
    yield f"{name}.{MARKER}", torch.tensor(list(json.dumps(marker).encode()), dtype=torch.uint8)


def declared(marker: Tensor | None) -> dict[str, Any]:
    """What a linear's marker says; nothing, where there is none or not such as ComfyUI writes."""
    if marker is None or marker.dtype != torch.uint8:
        return {}
    try:
        found = json.loads(bytes(marker.flatten().tolist()))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("format"), str) else {}


def quantized_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the linears that carry a marker."""
    return [key.removesuffix(f".{MARKER}") for key in tensors if key.endswith(f".{MARKER}")]


def read_linear(name: str, tensors: dict[str, Tensor]) -> QuantizedWeight:
    """Take one quantized linear's tensors out of `tensors`. Raises CheckpointError where they are not as specified."""
    marker = declared(tensors.pop(f"{name}.{MARKER}"))
    if not marker:
        raise CheckpointError(f"{name}.{MARKER} does not name a format; the file is damaged.")
    format = marker["format"]
    if format in STOCK:
        return read_stock(name, marker, tensors)
    if format not in FORMATS:
        raise CheckpointError(
            f"{name} is stored as {format!r}; qarvd reads its own formats and {' and '.join(STOCK)}. Open the file "
            "with ComfyUI's own Load Diffusion Model (0.27 or later), or quantize the full-precision checkpoint."
        )
    codec = FORMATS[format]
    needed = [
        _WEIGHT,
        _SCALE,
        _OUTLIERS,
        *([GROUP_SCALE] if codec.group else []),
        *([_TABLE] if codec.has_table else []),
    ]
    missing = [part for part in needed if f"{name}.{part}" not in tensors]
    if missing:
        raise CheckpointError(
            f"{name} is marked {format} but lacks {', '.join(f'{name}.{p}' for p in missing)}; the file is damaged."
        )
    codes = tensors.pop(f"{name}.{_WEIGHT}")
    parts = {part: tensors.pop(f"{name}.{part}", None) for part in _DTYPES}
    dtypes = _DTYPES | {_WEIGHT: codec.stored}
    for part, tensor in {_WEIGHT: codes, **parts}.items():
        also = _ALSO.get(part) if codec.group else None
        if tensor is not None and tensor.dtype not in (dtypes[part], also):
            kinds = " or ".join(str(dtype) for dtype in (also, dtypes[part]) if dtype)
            raise CheckpointError(f"{name}.{part} is {tensor.dtype}; {format} stores it as {kinds}.")
    scale, outliers, rotation, groups = parts[_SCALE], parts[_OUTLIERS], parts[_ROTATION], parts[GROUP_SCALE]
    assert scale is not None and outliers is not None
    if codes.ndim != 2 or outliers.ndim != 1 or (rotation is not None and rotation.shape != (1,)):
        found = ((_WEIGHT, codes), (_OUTLIERS, outliers), (_ROTATION, rotation))
        shapes = ", ".join(f"{name}.{part} {tuple(tensor.shape)}" for part, tensor in found if tensor is not None)
        raise CheckpointError(
            f"The parts of a linear have shapes {shapes}; two axes, one, and one number were expected."
        )
    scale = scale.float()
    try:
        width = 0 if rotation is None else int(rotation)
        split = ChannelSplit(codes.shape[1] * 8 // codec.bits, tuple(outliers.tolist()), width)
        weight = QuantizedWeight(codec, split, codes, scale, parts[_ZERO], groups, parts[_TABLE])
    except ShapeError as error:
        raise CheckpointError(f"The parts of {name} do not fit: {error}") from error
    if not (torch.isfinite(scale).all() and (scale > 0).all() and (scale[:, 1] >= scale[:, 0] * LEAST_RATIO).all()):
        raise CheckpointError(
            f"{name}.weight_scale must be finite and positive, the normal scale at least 1/256 of the outlier scale."
        )
    if groups is not None and not (torch.isfinite(groups.float()).all() and (groups.float() > 0).all()):
        raise CheckpointError(f"{name}.{GROUP_SCALE} must be finite and positive.")
    table = parts[_TABLE]
    if table is not None and not (torch.isfinite(table).all() and (table[1:] >= table[:-1]).all()):
        raise CheckpointError(f"{name}.{_TABLE} must be finite and ascend.")
    return weight
