"""PNG pictures with nothing but zlib."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from torch import Tensor

from ..errors import ShapeError
from ..files import replacing
from .pixels import to_bytes

GREY, RGB = 0, 2
"""Colour types of the PNG specification, section 11.2.1."""


def png_bytes(image: Tensor) -> bytes:
    """Encode `image`, grey [height, width] or RGB [height, width, 3], floats in 0..1, with 8 bits a channel."""
    if not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)) or image.numel() == 0:
        raise ShapeError(f"A picture is [height, width] or [height, width, 3], but this one is {tuple(image.shape)}.")
    height, width = image.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8, GREY if image.ndim == 2 else RGB, 0, 0, 0)
    rows = to_bytes(image).flatten(1).numpy()  # [height, width * channels]
    scanlines = b"".join(b"\0" + row.tobytes() for row in rows)  # filter 0: as they are
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(scanlines, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_png(path: Path | str, image: Tensor) -> None:
    """Write `image` (see `png_bytes`) to `path`, whole or not at all."""
    data = png_bytes(image)
    with replacing(Path(path)) as part:
        part.write_bytes(data)
