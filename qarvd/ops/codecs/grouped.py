"""Codecs with a scale for each group of columns: what those of all bit-widths share."""

from __future__ import annotations

from functools import partial

import torch

from .codec import Codec
from .planes import pack_planes, unpack_planes

GROUPS = (16, 32, 64)


def grouped(name: str, widths: tuple[int, ...], table: tuple[float, ...], has_table: bool = True) -> tuple[Codec, ...]:
    """The codecs `name` with groups of each size; see `Codec` for `table` and `has_table`, `planes` for `widths`."""
    pack, unpack = partial(pack_planes, widths=widths), partial(unpack_planes, widths=widths)
    return tuple(
        Codec(f"{name}{group}", sum(widths), torch.int8, pack, unpack, -127, 127, group, table, has_table)
        for group in GROUPS
    )
