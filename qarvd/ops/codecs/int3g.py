"""Three bits with a scale for each group of columns: codes point into a table of 8 levels.

The levels are those that leave normal numbers, divided by the largest of 16, the least squared error.
"""

from __future__ import annotations

from functools import partial

import torch

from .codec import Codec
from .planes import pack_planes, unpack_planes

LEVELS = (-0.923919, -0.594668, -0.336526, -0.109237, 0.109237, 0.336526, 0.594668, 0.923919)
CODEC = Codec(
    name="int3g",
    bits=3,
    stored=torch.int8,
    pack=partial(pack_planes, widths=(2, 1)),
    unpack=partial(unpack_planes, widths=(2, 1)),
    low=-127,
    high=127,
    groups=(16, 32, 64),
    table=LEVELS,
    has_table=True,
)
