"""Bit-widths as data: each file of this folder defines one `CODEC`; the file's name is the codec's."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from ...errors import SettingError, ShapeError
from .codec import Codec

CODECS: dict[str, Codec] = {
    name: import_module(f".{name}", __name__).CODEC
    for name in (module.name for module in iter_modules(__path__))
    if name != "codec"
}
"""Every codec of weights by name."""

CACHE_CODECS: dict[str, Codec] = {name: codec for name, codec in CODECS.items() if codec.keeps_cache}
"""Those in which keys and values are kept, too."""


def codec_of(bits: int) -> Codec:
    """The codec of `bits` bits. Raises SettingError if there is none."""
    for codec in CODECS.values():
        if codec.bits == bits:
            return codec
    raise SettingError(f"There are no {bits}-bit weights; {sorted(c.bits for c in CODECS.values())} are supported.")


def cache_codec_of(bits: int) -> Codec:
    """The codec of a cache of `bits` bits. Raises ShapeError if there is none."""
    for codec in CACHE_CODECS.values():
        if codec.bits == bits:
            return codec
    kept = sorted(c.bits for c in CACHE_CODECS.values())
    raise ShapeError(f"Keys and values are kept in {kept} bits; {bits} were asked for.")


__all__ = ["CACHE_CODECS", "CODECS", "Codec", "cache_codec_of", "codec_of"]
