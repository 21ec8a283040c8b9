"""Four bits with a scale for each group of columns: codes point into a table of 16 levels.

Bytes, scales and table lie as in ComfyUI's `asym_w4a8_int8`. The levels are those that leave normal numbers, divided by
the largest of 16, the least squared error; that format has the same ones.
"""

from __future__ import annotations

from functools import partial

import torch

from .codec import Codec
from .planes import pack_planes, unpack_planes

LEVELS = (
    *(-0.980602, -0.794529, -0.638165, -0.500986, -0.377321, -0.263187, -0.15521, -0.05072),
    *(0.052541, 0.156985, 0.265284, 0.379533, 0.502636, 0.638953, 0.794876, 0.980671),
)
CODEC = Codec(
    name="int4g",
    bits=4,
    stored=torch.int8,
    pack=partial(pack_planes, widths=(4,)),
    unpack=partial(unpack_planes, widths=(4,)),
    low=-127,
    high=127,
    groups=(16, 32, 64),
    table=LEVELS,
    has_table=True,
)
