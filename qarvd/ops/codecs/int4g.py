"""Four bits with a scale for each group of columns: codes point into a table of 16 levels.

Bytes, scales and table lie as in ComfyUI's `asym_w4a8_int8`. The levels are those that leave normal numbers, divided by
the largest of 16, the least squared error; that format has the same ones.
"""

from __future__ import annotations

from .grouped import grouped

LEVELS = (
    *(-0.980602, -0.794529, -0.638165, -0.500986, -0.377321, -0.263187, -0.15521, -0.05072),
    *(0.052541, 0.156985, 0.265284, 0.379533, 0.502636, 0.638953, 0.794876, 0.980671),
)
CODECS = grouped("int4g", (4,), LEVELS)
