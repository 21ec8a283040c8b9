"""Ways to store weights as data: each file of this folder defines `CODECS`, with its name.

All of them decode to 8-bit codes with a scale for each row and range, so that one product runs them all.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from ...errors import SettingError, ShapeError
from .codec import Codec

CODECS: dict[str, Codec] = {
    codec.name: codec
    for module in iter_modules(__path__)
    if module.name not in ("codec", "grouped", "planes")
    for codec in import_module(f".{module.name}", __name__).CODECS
}
"""Every codec of weights by name: `int4g16` is that of `int4g.py` with groups of 16."""

CACHE_CODECS: dict[str, Codec] = {name: codec for name, codec in CODECS.items() if codec.keeps_cache}
"""Those in which keys and values are kept, too."""


def codec_of(bits: int, group: int = 0) -> Codec:
    """The codec of `bits` bits, with a scale for each `group` of columns (0: for rows only). Raises SettingError."""
    for codec in CODECS.values():
        if (codec.bits, codec.group) == (bits, group):
            return codec
    known = ", ".join(f"{c.bits} in groups of {c.group}" if c.group else str(c.bits) for c in CODECS.values())
    asked = f"{bits}-bit weights" + (f" in groups of {group}" if group else "")
    raise SettingError(f"There are no {asked}; bits can be {known}.")


def cache_codec_of(bits: int) -> Codec:
    """The codec of a cache of `bits` bits. Raises ShapeError if there is none."""
    for codec in CACHE_CODECS.values():
        if codec.bits == bits:
            return codec
    kept = sorted(c.bits for c in CACHE_CODECS.values())
    raise ShapeError(f"Keys and values are kept in {kept} bits; {bits} were asked for.")


__all__ = ["CACHE_CODECS", "CODECS", "Codec", "cache_codec_of", "codec_of"]
