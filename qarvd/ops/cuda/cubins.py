"""Compiled kernels with their origin, as bytes; and those that come with the package."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from .source import FOLDER

SHIPPED = FOLDER / "cubins"
SERVES = {
    "sm_75": ((7, 5),),
    "sm_80": ((8, 0),),
    "sm_86": ((8, 6), (8, 9)),  # these convert integers with another, faster instruction than 8.0
    "sm_90": ((9, 0),),
    "sm_100": ((10, 0), (10, 3)),
    "sm_120": ((12, 0), (12, 1)),
}
"""Prebuilt architectures and the compute capabilities whose cards run them. A cubin also runs on later minor versions,
but not on the embedded ones (8.7, 10.1, 11.0): those are compiled for."""


@dataclass(frozen=True)
class Cubin:
    """A loadable module of kernels for one architecture."""

    architecture: str
    source: str
    """Hash of what it was compiled from."""
    compiler: str
    image: bytes

    def pack(self) -> bytes:
        """Compressed, with a checksum over everything; the same bytes for the same cubin."""
        import lzma

        about = {"architecture": self.architecture, "source": self.source, "compiler": self.compiler}
        body = json.dumps(about, sort_keys=True).encode() + b"\n" + self.image
        return lzma.compress(hashlib.sha256(body).digest() + body, preset=9 | lzma.PRESET_EXTREME)


def unpack(packed: bytes) -> Cubin | str:
    """The inverse of `Cubin.pack`, or why these bytes are none."""
    try:
        import lzma  # left out of some builds of Python
    except ImportError:
        return "this Python is built without lzma, which unpacks kernels"
    try:
        data = lzma.decompress(packed)
    except lzma.LZMAError as error:
        return f"it is damaged ({error})"
    checksum, body = data[:32], data[32:]
    if hashlib.sha256(body).digest() != checksum:
        return "it is damaged (its checksum is wrong)"
    about, _, image = body.partition(b"\n")
    return Cubin(**json.loads(about), image=image)


def architecture_for(capability: tuple[int, int]) -> str | None:
    """The prebuilt architecture that cards of this compute capability run."""
    return next((name for name, served in SERVES.items() if capability in served), None)


def shipped(capability: tuple[int, int], source: str, folder: Path = SHIPPED) -> Cubin | str:
    """The prebuilt kernels for a card, or why there are none of this `source` (a hash)."""
    architecture = architecture_for(capability)
    if architecture is None:
        return f"no kernels are prebuilt for compute capability {capability[0]}.{capability[1]}"
    path = folder / f"{architecture}.xz"
    if not path.is_file():
        return f"there is no {path.name} among the prebuilt kernels"
    cubin = unpack(path.read_bytes())
    if isinstance(cubin, str):
        return f"the prebuilt {path.name} can't be used: {cubin}"
    if cubin.architecture != architecture or cubin.source != source:
        return f"the prebuilt {path.name} was made from another source"
    return cubin
