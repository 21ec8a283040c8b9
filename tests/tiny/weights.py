"""Quantized weights of any codec, with any codes."""

from __future__ import annotations

import torch
from torch import Tensor

from qarvd.ops.codecs import CODECS, Codec
from qarvd.ops.split import ChannelSplit
from qarvd.ops.weight import QuantizedWeight

KINDS: dict[str, Codec] = {name: CODECS[name] for name in ("int8", "int4", "int4g16")}
"""One codec of each kind: a code a byte, fewer bits, and scales for groups."""


def weight_with(
    codec: Codec,
    split: ChannelSplit,
    scale: Tensor,
    zero: Tensor | None,
    generator: torch.Generator,
    most: int | None = None,
) -> QuantizedWeight:
    """Codes up to +-`most` (the codec's), or places in the table and scales of groups; those have no zero points."""
    shape = (len(scale), split.channels)
    if not codec.group:
        high = codec.high if most is None else most
        codes = torch.randint(-high, high + 1, shape, dtype=torch.int8, generator=generator)
        return QuantizedWeight(codec, split, codec.pack(codes), scale, zero)
    places = torch.randint(0, 2**codec.bits, shape, dtype=torch.int8, generator=generator)
    groups = (torch.rand(len(scale), split.channels // codec.group, generator=generator) + 0.5) * 80 / max(codec.table)
    table = torch.tensor(codec.table) if codec.has_table else None
    return QuantizedWeight(codec, split, codec.pack(places), scale, None, groups.to(torch.float8_e4m3fn), table)
