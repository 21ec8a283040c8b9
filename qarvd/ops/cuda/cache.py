"""What NVRTC made, kept on the disk for the next process."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from ...errors import SettingError
from ...files import replacing
from .cubins import Cubin, unpack


def user_folder(platform: str, environment: Mapping[str, str], home: Path | None) -> Path | None:
    """Where a user's caches of this package lie; `platform` as in `sys.platform`.

    None for a user who has no home folder, unless the environment names a folder for caches.
    """
    if platform == "win32":
        named, usual = environment.get("LOCALAPPDATA"), Path("AppData", "Local")
    elif platform == "darwin":
        named, usual = None, Path("Library", "Caches")
    else:
        named, usual = environment.get("XDG_CACHE_HOME"), Path(".cache")
        if named and not Path(named).is_absolute():  # the XDG specification ignores those
            named = None
    if named:
        return Path(named, "qarvd", "kernels")
    return None if home is None else home / usual / "qarvd" / "kernels"


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
