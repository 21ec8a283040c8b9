"""Six bits with a scale for each group of columns: code c stands for c - 32 times the scale.

Bytes and scales lie as in ComfyUI's `asym_w4a8_int8` of 6 bits.
"""

from __future__ import annotations

from functools import partial

import torch

from .codec import Codec
from .planes import pack_planes, unpack_planes

CODEC = Codec(
    name="int6g",
    bits=6,
    stored=torch.int8,
    pack=partial(pack_planes, widths=(4, 2)),
    unpack=partial(unpack_planes, widths=(4, 2)),
    low=-127,
    high=127,
    groups=(16, 32, 64),
    table=tuple(float(code - 32) for code in range(64)),
)
