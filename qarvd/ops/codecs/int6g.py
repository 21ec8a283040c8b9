"""Six bits with a scale for each group of columns: code c stands for c - 32 times the scale.

Bytes and scales lie as in ComfyUI's `asym_w4a8_int8` of 6 bits.
"""

from __future__ import annotations

from .grouped import grouped

CODECS = grouped("int6g", (4, 2), tuple(float(code - 32) for code in range(64)), has_table=False)
