"""What NVRTC made, kept on the disk for the next process."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ...errors import SettingError
from ...files import replacing
from .cubins import Cubin, unpack


def get(folder: Path, source: str, architecture: str, compiler: str) -> Cubin | None:
    """The kept cubin of exactly this origin; one that is damaged or of another origin does not count."""
    path = folder / _name(source, architecture, compiler)
    try:
        cubin = unpack(path.read_bytes())
    except OSError:
        return None
    if isinstance(cubin, str) or (cubin.source, cubin.architecture, cubin.compiler) != (source, architecture, compiler):
        return None
    return cubin


def put(folder: Path, cubin: Cubin) -> None:
    """Keep `cubin`. Raises SettingError where nothing can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(f"The folder {folder} for compiled kernels can't be made: {error.strerror}.") from error
    with replacing(folder / _name(cubin.source, cubin.architecture, cubin.compiler)) as part:
        part.write_bytes(cubin.pack())


def _name(source: str, architecture: str, compiler: str) -> str:
    key = hashlib.sha256(f"{source} {architecture} {compiler}".encode()).hexdigest()
    return f"{architecture}-{key[:32]}.xz"
