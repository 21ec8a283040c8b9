"""Bit-widths as data: each file of this folder defines one `CODEC`; the file's name is the codec's."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from ...errors import SettingError
from .codec import Codec

CODECS: dict[str, Codec] = {
    name: import_module(f".{name}", __name__).CODEC
    for name in (module.name for module in iter_modules(__path__))
    if name != "codec"
}
"""Every codec by name."""


def codec_of(bits: int) -> Codec:
    """The codec of `bits` bits. Raises SettingError where there is none."""
    for codec in CODECS.values():
        if codec.bits == bits:
            return codec
    raise SettingError(f"There are no {bits}-bit weights; {sorted(c.bits for c in CODECS.values())} are supported.")


__all__ = ["CODECS", "Codec", "codec_of"]
